//! What an operator decides about a volume that waits or has diverged, and what became of it.

use std::time::Duration;

use super::volume::VolumeLife;
use crate::exit::Failure;

/// A start by an operator's word is waited for so long.
const PATIENCE: Duration = Duration::from_secs(15);

/// What an operator decided about a volume that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Serve from this device although the other leg may be newer.
    Alone(String),
    /// Serve from the other leg of a diverged pair, and refill this one.
    Loses(String),
}

impl VolumeLife {
    /// `antler leg run VOLUME DEVICE --alone`.
    pub(crate) async fn run_alone(&self, device: &str) -> Result<String, Failure> {
        self.slot(device)?;
        if self.store.borrow().is_some() {
            return Err(Failure::problem(format!(
                "volume {} is being served",
                self.config.name
            )));
        }
        self.begin_by_word(Word::Alone(device.to_owned())).await?;
        Ok(format!(
            "volume {} is started from {device} alone: what only the other leg holds is given up, and that leg is \
             filled from {device} when it is there again",
            self.config.name
        ))
    }

    /// `antler leg add VOLUME DEVICE --force` on a diverged pair.
    pub(crate) async fn choose_loser(&self, device: &str) -> Result<String, Failure> {
        self.slot(device)?;
        self.begin_by_word(Word::Loses(device.to_owned())).await?;
        Ok(format!(
            "volume {} is started from its other leg, and {device} is filled from it",
            self.config.name
        ))
    }

    /// Returns when the next try to begin, which goes by this word, has ended.
    async fn begin_by_word(&self, word: Word) -> Result<(), Failure> {
        *self.outcome.borrow_mut() = None;
        *self.word.borrow_mut() = Some(word);
        let until = self.base.rt.now() + PATIENCE;
        while self.base.rt.now() < until {
            if let Some(outcome) = self.outcome.borrow_mut().take() {
                let name = &self.config.name;
                return outcome.map_err(|text| {
                    Failure::problem(format!("volume {name} is not started: {text}"))
                });
            }
            self.base.rt.sleep(Duration::from_millis(20)).await;
        }
        Err(Failure::unreachable(format!(
            "volume {} has not started within {} s; `antler status` tells how it goes on",
            self.config.name,
            PATIENCE.as_secs()
        )))
    }
}
