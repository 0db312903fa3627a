//! User-friendly names: the bindings file of multipath, and the next free name in it.
//!
//! Format (multipath(8)): comments, and `alias wwid` a line. The first line of a WWID or of an alias counts.
//! A new line is appended by writing the file anew beside itself and renaming it, under a lock on its
//! directory, so that no reader ever sees half of it and two writers never give out one name.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

/// What multipath writes at the top.
const HEADER: &str = "# Multipath bindings, Version : 1.0\n\
                      # Each line is an alias and the WWID that it stands for.\n";

/// The bindings in a text, in its order.
fn bindings(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let line = line.split(['#', '!']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        Some((words.next()?, words.next()?))
    })
}

/// The alias that a text gives to a WWID. A line is passed over if an earlier one has its alias for another.
fn bound<'a>(text: &'a str, wwid: &str) -> Option<&'a str> {
    let own = |(alias, _): &(&str, &str)| bindings(text).find(|(a, _)| a == alias);
    bindings(text)
        .filter(|(_, w)| *w == wwid)
        .find(|binding| own(binding) == Some(*binding))
        .map(|(alias, _)| alias)
}

/// `a` to `z`, `aa`, `ab`: 1 is `a`.
fn letters(mut number: u64) -> String {
    let mut name = Vec::new();
    while number > 0 {
        number -= 1;
        name.push(b'a' + (number % 26) as u8);
        number /= 26;
    }
    name.reverse();
    name.into_iter().map(char::from).collect()
}

/// The first name with this prefix that is neither in the text nor `taken`.
fn free(text: &str, prefix: &str, taken: &[String]) -> String {
    let is_used = |name: &String| bindings(text).any(|(a, _)| a == name) || taken.contains(name);
    let mut number = 1;
    loop {
        let name = format!("{prefix}{}", letters(number));
        if !is_used(&name) {
            return name;
        }
        number += 1;
    }
}

/// The alias of a WWID: the one in the file, or a new one that is in the file when this returns. `taken`:
/// names that other units have by configuration.
pub(crate) fn bind(file: &Path, prefix: &str, wwid: &str, taken: &[String]) -> io::Result<String> {
    let directory = match file.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory)?;
    let locked = Flock::lock(File::open(directory)?, FlockArg::LockExclusive);
    let locked = locked.map_err(|(_, e)| io::Error::from(e))?;
    let mut text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => HEADER.to_owned(),
        Err(e) => return Err(e),
    };
    if let Some(alias) = bound(&text, wwid) {
        return Ok(alias.to_owned());
    }
    let alias = free(&text, prefix, taken);
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!("{alias} {wwid}\n"));
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    let mut new = File::create(&beside)?;
    if let Ok(old) = fs::metadata(file) {
        new.set_permissions(old.permissions())?;
    }
    new.write_all(text.as_bytes())?;
    new.sync_all()?;
    fs::rename(&beside, file)?;
    locked.sync_all()?;
    Ok(alias)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_each_other_as_multipath_counts() {
        let named: Vec<String> = [1, 2, 26, 27, 52, 53, 702, 703].map(letters).into();
        assert_eq!(named, ["a", "b", "z", "aa", "az", "ba", "zz", "aaa"]);
    }

    #[test]
    fn what_a_text_binds() {
        let text =
            "# head\nmpatha 36001 extra\n\nred 36002 # lamp\nmpatha 36003\nblue 36003\nlone\n";
        assert_eq!(bound(text, "36001"), Some("mpatha"));
        assert_eq!(bound(text, "36002"), Some("red"));
        assert_eq!(bound(text, "36003"), Some("blue"));
        assert_eq!(bound(text, "36004"), None);
        assert_eq!(free(text, "mpath", &["mpathb".to_owned()]), "mpathc");
        assert_eq!(free(text, "san", &[]), "sana");
    }

    #[test]
    fn a_file_is_made_kept_and_honoured() {
        let dir = std::env::temp_dir().join(format!("antler-bindings-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let file = dir.join("multipath/bindings");
        let bind = |wwid: &str| bind(&file, "mpath", wwid, &[]).unwrap();
        assert_eq!(
            (bind("36001").as_str(), bind("36002").as_str()),
            ("mpatha", "mpathb")
        );
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text, format!("{HEADER}mpatha 36001\nmpathb 36002\n"));
        // By hand, and without its last newline.
        fs::write(&file, "red 36001\nmpathb 36002").unwrap();
        assert_eq!(
            (bind("36001").as_str(), bind("36003").as_str()),
            ("red", "mpatha")
        );
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text, "red 36001\nmpathb 36002\nmpatha 36003\n");
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn two_at_once_get_two_names() {
        let dir = std::env::temp_dir().join(format!("antler-bound-{}", std::process::id()));
        let file = dir.join("bindings");
        let one = |n: usize| {
            let file = file.clone();
            std::thread::spawn(move || bind(&file, "mpath", &format!("3600{n}"), &[]).unwrap())
        };
        let threads: Vec<_> = (0..8).map(one).collect();
        let mut names: Vec<String> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        names.sort();
        assert_eq!(
            names,
            ["a", "b", "c", "d", "e", "f", "g", "h"].map(|l| format!("mpath{l}"))
        );
        fs::remove_dir_all(&dir).unwrap();
    }
}
