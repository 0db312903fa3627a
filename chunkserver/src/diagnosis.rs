//! Why a volume does not begin, in words that name its devices, what is wrong with them, and the way out.
//!
//! The one place where these words are made, for `serve` and for the commands that work offline: `raid` decides by
//! slots, and knows neither the volume's name nor what lies on a device that is no member. Nothing is written here.

use blockdev::rt::Wall;
use blockdev::BlockDevice;
use raid::assemble::{AssembleError, LegInput, Survey};
use raid::decide::{Decision, Lack};
use raid::probe::{examine, Found, Member};
use raid::ControlError;

use crate::config::Volume;
use crate::ownership::in_words;

/// A volume and its devices as they were found.
pub(crate) struct Diagnosis<'a> {
    /// The volume.
    pub(crate) volume: &'a Volume,
    /// Its devices, spares too.
    pub(crate) legs: &'a [LegInput],
    /// Why a device is not there.
    pub(crate) absent: &'a dyn Fn(&str) -> String,
    /// The age of claims is counted from here.
    pub(crate) now: Wall,
}

impl Diagnosis<'_> {
    /// A refusal of the survey, or of the assembly that follows it.
    pub(crate) async fn refusal(&self, error: &AssembleError) -> String {
        let name = &self.volume.name;
        match error {
            AssembleError::Nothing(_) => self.nothing().await,
            AssembleError::Mixed(first, second) => {
                let told = self.told([first, second].map(String::as_str)).await;
                format!(
                    "{first} and {second} are legs of different arrays: {told}: {}",
                    self.overwrite()
                )
            }
            AssembleError::Diverged(histories) => diverged(name, histories),
            AssembleError::Claimed { device, claim } => format!(
                "{device} is claimed by {}; `antler volume claim {name} --take` takes it over",
                in_words(claim, self.now)
            ),
            AssembleError::Legs(_)
            | AssembleError::Member { .. }
            | AssembleError::Waiting(_)
            | AssembleError::Witness(_)
            | AssembleError::Io(_) => error.to_string(),
        }
    }

    /// Why what was found does not begin; `None`: it does.
    pub(crate) async fn undecided(&self, found: &Survey) -> Option<String> {
        match &found.decision {
            Decision::Run(_) => None,
            Decision::Diverged(histories) => Some(diverged(&self.volume.name, histories)),
            Decision::Wait(lack) => Some(self.waiting(found, *lack).await),
        }
    }

    /// Legs that are there and are none of this array, each with what it holds and the way out.
    pub(crate) async fn strangers(&self, found: &Survey) -> Option<String> {
        let name = &self.volume.name;
        let mut told = Vec::new();
        for leg in self.own().filter(|leg| leg.device.is_some()) {
            if is_member(found, &leg.name) {
                continue;
            }
            let device = &leg.name;
            let (why, force) = match self.content(leg).await {
                Content::Member(member) => (surveyed(found, device, &member), " --force"),
                Content::Blank => (Content::Blank.in_words(), ""),
                other => (other.in_words(), " --force"),
            };
            told.push(format!(
                "leg {device} {why}: `antler leg replace {name} {device}{force}` fills it while the volume is served"
            ));
        }
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// What these devices hold, or why they are not there.
    pub(crate) async fn told(&self, names: impl IntoIterator<Item = &str>) -> String {
        let mut told = Vec::new();
        for name in names {
            if let Some(leg) = self.legs.iter().find(|leg| leg.name == name) {
                told.push(format!("{name} {}", self.content(leg).await.in_words()));
            }
        }
        told.join("; ")
    }

    async fn nothing(&self) -> String {
        let (mut is_blank, mut is_foreign) = (false, false);
        for leg in self.own() {
            match self.content(leg).await {
                Content::Blank => is_blank = true,
                Content::Member(_) | Content::Other(_) => is_foreign = true,
                Content::Absent(_) | Content::Unreadable(_) => {}
            }
        }
        let told = self.told(self.own().map(|leg| leg.name.as_str())).await;
        let cure = match (is_foreign, is_blank) {
            (true, _) => format!(": {}", self.overwrite()),
            (false, true) => format!(
                ": `antler volume create {}` makes the volume",
                self.volume.name
            ),
            (false, false) => String::new(),
        };
        format!("no leg of the volume was found: {told}{cure}")
    }

    fn overwrite(&self) -> String {
        format!(
            "correct the device's portals, target, lun or path, or let `antler volume create {} --force` \
             overwrite it",
            self.volume.name
        )
    }

    async fn waiting(&self, found: &Survey, lack: Lack) -> String {
        let lacked = self.own().find(|leg| !is_member(found, &leg.name));
        let had = found.members.iter().flatten().next();
        let (Some(lacked), Some((had, _))) = (lacked, had) else {
            return lack.to_string();
        };
        let why = match self.content(lacked).await {
            Content::Member(member) => surveyed(found, &lacked.name, &member),
            other => other.in_words(),
        };
        let missing = format!("leg {} is missing ({why})", lacked.name);
        match lack {
            Lack::AnyLeg => lack.to_string(),
            Lack::WholeLeg => {
                format!("{missing} and {had} is only partly rebuilt; start the other")
            }
            Lack::OtherLeg(doubt) => format!(
                "{missing} and {doubt}; start the other, or `antler leg run {} {had} --alone`",
                self.volume.name
            ),
        }
    }

    /// The configured legs, without spares.
    fn own(&self) -> impl Iterator<Item = &LegInput> {
        let configured = &self.volume.legs;
        self.legs
            .iter()
            .filter(|leg| configured.contains(&leg.name))
    }

    async fn content(&self, leg: &LegInput) -> Content {
        let Some(device) = &leg.device else {
            return Content::Absent((self.absent)(&leg.name));
        };
        match examine(&**device).await {
            Ok(Found::Nothing) => Content::Blank,
            Ok(Found::Member(member)) => Content::Member(member),
            Ok(Found::Foreign(what)) => Content::Other(what),
            Err(error) => Content::Unreadable(error.to_string()),
        }
    }
}

/// Why a running array refused an order about one of its legs.
pub(crate) fn refused_order(volume: &str, device: &str, error: &ControlError) -> String {
    match error {
        ControlError::Diverged { .. } => {
            format!("{error}; `antler leg add {volume} {device} --force` fills it anew")
        }
        ControlError::Claimed { .. } => {
            format!("{error}; stop that node, then `antler leg replace {volume} {device} --force` takes the device")
        }
        other => other.to_string(),
    }
}

/// Why a running array left a device alone that came as one of its legs, and the way out.
pub(crate) async fn not_taken_in(
    volume: &str,
    name: &str,
    device: &dyn BlockDevice,
    error: &ControlError,
) -> String {
    let cure =
        |force: &str| format!("`antler leg replace {volume} {name}{force}` makes it the leg");
    match (examine(device).await, error) {
        (Ok(Found::Nothing), _) => format!("leg {name} is blank: {}", cure("")),
        (Ok(Found::Foreign(what)), _) => format!("leg {name} holds {what}: {}", cure(" --force")),
        (_, ControlError::Occupied { what, .. }) => {
            format!("leg {name} is {what}: {}", cure(" --force"))
        }
        _ => format!(
            "leg {name} is not taken in: {}",
            refused_order(volume, name, error)
        ),
    }
}

fn diverged(volume: &str, histories: &str) -> String {
    format!("{histories}; `antler leg add {volume} DEVICE --force` chooses the loser")
}

fn is_member(found: &Survey, device: &str) -> bool {
    let mut members = found.members.iter().flatten();
    members.any(|(name, _)| name == device)
}

/// What the survey has against a device that is a member in itself.
fn surveyed(found: &Survey, device: &str, member: &Member) -> String {
    let known = found.others.iter().find(|(name, _)| name == device);
    match known {
        Some((_, why)) => why.clone(),
        None => format!("is a leg of {}", member.superblock.array_in_words()),
    }
}

enum Content {
    Absent(String),
    Blank,
    Member(Box<Member>),
    Other(String),
    Unreadable(String),
}

impl Content {
    fn in_words(&self) -> String {
        match self {
            Content::Absent(why) => format!("is not there: {why}"),
            Content::Blank => "is blank".to_owned(),
            Content::Member(member) => {
                format!("is a leg of {}", member.superblock.array_in_words())
            }
            Content::Other(what) => format!("holds {what}"),
            Content::Unreadable(why) => format!("cannot be read: {why}"),
        }
    }
}
