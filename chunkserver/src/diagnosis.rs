//! Why a volume has no array, in words that name the leg, what is wrong with it, and the way out.
//!
//! `raid` decides by slots and knows neither the volume's name nor what lies on a device that is no member. Nothing
//! is written here.

use raid::assemble::{AssembleError, LegInput, Survey};
use raid::probe::{examine, Found};

use crate::config::Volume;

/// What `raid` calls the leg that it lacks, and the one that it has.
const LACKED: &str = "one leg is missing";
const HAD: &str = "DEVICE";

/// A survey's refusal in the words of the site. `absent` says why a device is not there.
pub(crate) async fn refusal(
    volume: &Volume,
    legs: &[LegInput],
    error: &AssembleError,
    absent: impl Fn(&str) -> String,
) -> String {
    if !matches!(error, AssembleError::Nothing(_)) {
        return error.to_string().replace("VOLUME", &volume.name);
    }
    let name = &volume.name;
    let mut told = Vec::new();
    let (mut is_blank, mut is_foreign) = (false, false);
    for leg in own(volume, legs) {
        let content = content(leg, &absent).await;
        is_blank |= matches!(content, Content::Blank);
        is_foreign |= matches!(content, Content::Other(_));
        told.push(format!("{} {}", leg.name, content.in_words()));
    }
    let told = told.join("; ");
    let cure = match (is_foreign, is_blank) {
        (true, _) => format!(
            ": correct the device's portals, target, lun or path, or let `antler volume create {name} --force` \
             overwrite it"
        ),
        (false, true) => format!(": `antler volume create {name}` makes the volume"),
        (false, false) => String::new(),
    };
    format!("no leg of the volume was found: {told}{cure}")
}

/// Why one leg alone does not begin: which one is lacking, and why.
pub(crate) async fn waiting(
    volume: &Volume,
    legs: &[LegInput],
    found: &Survey,
    text: &str,
    absent: impl Fn(&str) -> String,
) -> String {
    let text = text.replace("VOLUME", &volume.name);
    let members = || found.members.iter().flatten().map(|(name, _)| name);
    let lacked = own(volume, legs).find(|leg| !members().any(|name| *name == leg.name));
    let (Some(lacked), Some(had)) = (lacked, members().next()) else {
        return text;
    };
    let why = match content(lacked, &absent).await {
        // It is a member in itself: the survey knows why it is none here.
        Content::Member => {
            let mut others = found.others.iter();
            let known = others.find(|(name, _)| *name == lacked.name);
            known.map_or_else(
                || "is no leg of this array".to_owned(),
                |(_, why)| why.clone(),
            )
        }
        other => other.in_words(),
    };
    let named = format!("leg {} is missing ({why})", lacked.name);
    text.replacen(LACKED, &named, 1).replacen(HAD, had, 1)
}

fn own<'a>(volume: &'a Volume, legs: &'a [LegInput]) -> impl Iterator<Item = &'a LegInput> {
    legs.iter().filter(|leg| volume.legs.contains(&leg.name))
}

enum Content {
    Absent(String),
    Blank,
    Member,
    Other(String),
    Unreadable(String),
}

impl Content {
    fn in_words(&self) -> String {
        match self {
            Content::Absent(why) => format!("is not there: {why}"),
            Content::Blank => "is blank".to_owned(),
            Content::Member => "is a leg of another array".to_owned(),
            Content::Other(what) => format!("holds {what}"),
            Content::Unreadable(why) => format!("cannot be read: {why}"),
        }
    }
}

async fn content(leg: &LegInput, absent: impl Fn(&str) -> String) -> Content {
    let Some(device) = &leg.device else {
        return Content::Absent(absent(&leg.name));
    };
    match examine(&**device).await {
        Ok(Found::Nothing) => Content::Blank,
        Ok(Found::Member(_)) => Content::Member,
        Ok(Found::Foreign(what)) => Content::Other(what),
        Err(error) => Content::Unreadable(error.to_string()),
    }
}
