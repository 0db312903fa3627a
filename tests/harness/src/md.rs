//! What `mdadm --examine` says of a leg: the judge of our superblocks.

use std::path::Path;

use crate::command::{must, require};

/// The fields of a superblock that tests compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// `Array UUID`.
    pub array_uuid: String,
    /// `Raid Level`.
    pub level: String,
    /// `State`: clean or active.
    pub state: String,
    /// `Events`.
    pub events: u64,
    /// `Array State`, such as `AA`.
    pub array_state: String,
    /// Whether the checksum is `correct`.
    pub checksum_correct: bool,
}

/// Runs `mdadm --examine` on a leg's backing file; panics when mdadm finds no superblock there.
pub fn examine(leg: &Path) -> Superblock {
    let text = must(
        std::process::Command::new(require("mdadm"))
            .arg("--examine")
            .arg(leg),
    );
    parse(&text)
}

fn parse(text: &str) -> Superblock {
    let field = |name: &str| -> String {
        let value = text.lines().find_map(|line| {
            let (key, value) = line.split_once(" : ")?;
            (key.trim() == name).then(|| value.trim().to_owned())
        });
        value.unwrap_or_else(|| panic!("mdadm --examine shows no {name}:\n{text}"))
    };
    Superblock {
        array_uuid: field("Array UUID"),
        level: field("Raid Level"),
        state: field("State"),
        events: field("Events")
            .parse()
            .unwrap_or_else(|e| panic!("mdadm --examine shows odd events ({e}):\n{text}")),
        array_state: field("Array State")
            .split(' ')
            .next()
            .unwrap_or_default()
            .to_owned(),
        checksum_correct: field("Checksum").ends_with("correct"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_read() {
        let text = "/dev/loop0:\n          Magic : a92b4efc\n        Version : 1.2\n     \
                    Array UUID : 0badc0de:1:2:3\n     Raid Level : raid1\n          State : clean\n       \
                    Checksum : 6ab1d2c3 - correct\n         Events : 17\n   \
                    Array State : A. ('A' == active, '.' == missing, 'R' == replacing)\n";
        let superblock = parse(text);
        assert_eq!(superblock.array_uuid, "0badc0de:1:2:3");
        assert_eq!(superblock.level, "raid1");
        assert_eq!(superblock.state, "clean");
        assert_eq!(superblock.events, 17);
        assert_eq!(superblock.array_state, "A.");
        assert!(superblock.checksum_correct);
    }
}
