//! Switches that turn a safety rule off, so that a test can prove that it would notice.
//!
//! Without the cargo feature `mutation` every rule is on and the switch does not exist. With it,
//! `ANTLER_MUTATION=RULE` in the environment turns one rule off for the whole process.

/// Whether `rule` (as `mpath.fence`) is switched off.
#[cfg(feature = "mutation")]
pub fn off(rule: &str) -> bool {
    use std::sync::OnceLock;
    static OFF: OnceLock<Option<String>> = OnceLock::new();
    OFF.get_or_init(|| {
        std::env::var("ANTLER_MUTATION")
            .ok()
            .filter(|r| !r.is_empty())
    })
    .as_deref()
        == Some(rule)
}

/// Whether `rule` is switched off: never, in this build.
#[cfg(not(feature = "mutation"))]
#[inline(always)]
pub const fn off(_rule: &str) -> bool {
    false
}
