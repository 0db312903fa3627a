//! What the configuration has under a name, or the one message that says it has nothing.

use crate::config::{Config, Device, Volume};
use crate::exit::Failure;

/// The `[[device]]` of that name.
pub(crate) fn device<'a>(config: &'a Config, name: &str) -> Result<&'a Device, Failure> {
    let known = config.devices.iter().map(|d| d.name.as_str());
    let found = config.device(name);
    found.ok_or_else(|| nothing(config, "device", name, known))
}

/// The `[[volume]]` of that name.
pub(crate) fn volume<'a>(config: &'a Config, name: &str) -> Result<&'a Volume, Failure> {
    config.volume(name).ok_or_else(|| no_volume(config, name))
}

/// There is no `[[volume]]` of that name.
pub(crate) fn no_volume(config: &Config, name: &str) -> Failure {
    let known = config.volumes.iter().map(|v| v.name.as_str());
    nothing(config, "volume", name, known)
}

fn nothing<'a>(
    config: &Config,
    what: &str,
    name: &str,
    known: impl Iterator<Item = &'a str>,
) -> Failure {
    let known: Vec<&str> = known.collect();
    let known = match known.as_slice() {
        [] => "there is none".to_owned(),
        some => format!("there are: {}", some.join(", ")),
    };
    Failure::usage(format!(
        "there is no [[{what}]] named {name:?} in {}; {known}",
        config.path.display()
    ))
}
