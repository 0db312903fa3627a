//! A leg lost its cache (store rule R11): what no flush has covered is written to it again.
//!
//! Until that is done nothing is acknowledged, no flush counts on it, and it is not read. Without
//! a window (durability `cache`, or one that could not be kept) the leg goes out and is re-added:
//! every unflushed write lies under a set bit. The last leg can only raise an alarm.

use super::write::Body;
use super::{Array, Leg, Why};
use crate::window::Content;
use blockdev::{mutation, Durability, IoCtx, IoError, Sector};
use std::ops::Range;

/// Sectors of one write of a restore.
const PART_SECTORS: u64 = 2048;

impl Array {
    pub(super) fn cache_lost(&self, leg: &Leg) {
        if mutation::off("raid.cache-lost") {
            return;
        }
        leg.losses.set(leg.losses.get() + 1);
        if !leg.takes_writes() {
            return;
        }
        let kept = leg.window.borrow().bytes();
        let text = format!("its cache may be lost; {kept} bytes are written again");
        if self.options.window_bytes > 0 {
            self.report_leg("cache_lost", leg, text, true);
            if !leg.restoring.replace(true) {
                let (me, index) = (self.me.clone(), leg.index);
                self.rt.spawn(async move {
                    if let Some(array) = me.upgrade() {
                        array.restore(array.leg(index)).await;
                    }
                });
            }
        } else {
            let text = "its cache may be lost, and no window is kept".to_owned();
            self.report_leg("cache_lost", leg, text, true);
            self.fail_leg(leg, Why::CacheLost, "its cache may be lost");
        }
    }

    async fn restore(&self, leg: &Leg) {
        loop {
            let losses = leg.losses.get();
            // What is still under way ends first: it may be newer than what is in the window.
            self.changed
                .until(|| !leg.takes_writes() || !self.owes(leg, false))
                .await;
            if !leg.takes_writes() {
                break;
            }
            let result = self.write_window(leg).await;
            if leg.losses.get() != losses {
                continue;
            }
            if let Err(error) = result {
                self.fail_leg(leg, Why::Failed, &format!("its lost cache: {error}"));
            }
            break;
        }
        leg.restoring.set(false);
        self.stir();
    }

    async fn write_window(&self, leg: &Leg) -> Result<(), IoError> {
        let entries = leg.window.borrow().all();
        for (range, content) in entries {
            for part in parts(&range) {
                let skip = ((part.start.0 - range.start.0) * 512) as usize;
                let sectors = part.end.0 - part.start.0;
                let body = match &content {
                    Content::Zeros => Body::Zeroes,
                    Content::Data(data) => {
                        let bytes = data.slice(skip..skip + (sectors * 512) as usize);
                        Body::Data(bytes, Durability::Cache)
                    }
                };
                let ctx = IoCtx::metadata();
                self.write_absolute(leg.index, part, body, ctx).await?;
            }
        }
        Ok(())
    }
}

fn parts(range: &Range<Sector>) -> impl Iterator<Item = Range<Sector>> {
    let end = range.end;
    (range.start.0..range.end.0)
        .step_by(PART_SECTORS as usize)
        .map(move |at| Sector(at)..Sector((at + PART_SECTORS).min(end.0)))
}
