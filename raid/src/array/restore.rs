//! A leg lost its cache (store rule R11): what no flush has covered is written to it again.
//!
//! A cache goes with all sessions, and in such a time the medium may have been changed too: the
//! superblock is read first, and a leg that shows an older one goes out, to be filled again.
//!
//! Until that is done nothing is acknowledged, no flush counts on it, and it is not read. Without
//! a window (durability `cache`, or one that could not be kept) the leg goes out and is re-added:
//! every unflushed write lies under a set bit. The last leg can only raise an alarm. A leg that is
//! being rebuilt goes out too, and its copy begins again where a flush has ended.

use super::write::Body;
use super::{Array, Leg, LegState, Why};
use crate::window::Content;
use blockdev::{mutation, Durability, IoCtx, IoError, Sector};
use std::ops::Range;
use std::time::Duration;

/// Sectors of one write of a restore.
const PART_SECTORS: u64 = 2048;
const OLDER: &str = "came back without the superblock or claim that it had acknowledged last";
const RETRY: Duration = Duration::from_millis(250);

impl Array {
    pub(super) fn cache_lost(&self, leg: &Leg) {
        if mutation::off("raid.cache-lost") {
            return;
        }
        leg.losses.set(leg.losses.get() + 1);
        match leg.state() {
            // A leaving leg may be called back: then it must be whole first.
            LegState::InSync | LegState::Leaving => {}
            // What was copied and not flushed may be gone: the copy begins where a flush ended.
            LegState::Rebuilding | LegState::Joining => {
                self.fail_leg(leg, Why::CacheLost, "its cache may be lost");
                return;
            }
            LegState::Absent | LegState::Out => return,
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
                .until(|| {
                    let leaving = leg.state() == LegState::Leaving;
                    !leaving && (!leg.is_required() || !self.owes(leg, false))
                })
                .await;
            if !leg.is_required() {
                break;
            }
            let unchanged = self.is_unchanged(leg).await;
            if leg.state() == LegState::Leaving {
                continue; // called back, it must be whole first
            }
            let result = match unchanged {
                None => break, // it is out
                Some(Ok(false)) if !self.is_last(leg) => {
                    self.fail_leg(leg, Why::Failed, OLDER);
                    continue;
                }
                Some(Ok(is_unchanged)) => {
                    if !is_unchanged {
                        // There is nothing fresher; the store's checksums tell what is lost.
                        self.report_leg("leg_failed", leg, OLDER.into(), true);
                    }
                    self.write_window(leg).await
                }
                Some(Err(error)) => Err(error),
            };
            if leg.losses.get() != losses {
                continue;
            }
            let Err(error) = result else { break };
            let text = format!("its lost cache is not written again: {error}");
            self.fail_leg(leg, super::flush::why_of(&error), &text);
            if leg.state() == LegState::InSync {
                // The last leg stays, and nothing is acknowledged before it is whole.
                tracing::error!(volume = %self.options.volume, leg = leg.name(), text);
                self.rt.sleep(RETRY).await;
            }
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
