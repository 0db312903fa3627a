//! How much memory this process may use: the machine's RAM or the limit of its control group, whichever is
//! less.
//!
//! Sources: `/proc/meminfo` (proc(5)) and the kernel's cgroup-v2 document: `memory.max` of the group named in
//! `/proc/self/cgroup` and of each of its parents, for a parent's limit binds as well. cgroup v1:
//! `memory.limit_in_bytes`.

use std::path::{Path, PathBuf};

/// Assumed where neither RAM nor a limit can be read.
const UNKNOWN_BYTES: u64 = 1 << 30;

/// Bytes this process may use.
pub(crate) fn available_bytes() -> u64 {
    let ram = read("/proc/meminfo").and_then(|t| ram_bytes(&t));
    let group =
        read("/proc/self/cgroup").and_then(|t| group_limit(&t, Path::new("/sys/fs/cgroup")));
    match (ram, group) {
        (Some(ram), Some(group)) => ram.min(group),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => UNKNOWN_BYTES,
    }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn ram_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

fn group_limit(own: &str, root: &Path) -> Option<u64> {
    let mut least = None;
    for line in own.lines() {
        // hierarchy:controllers:path; v2 is hierarchy 0 without controllers.
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (base, file) = if controllers.is_empty() {
            (root.to_path_buf(), "memory.max")
        } else if controllers.split(',').any(|c| c == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        let mut group: PathBuf = base.join(path.trim_start_matches('/'));
        loop {
            // "max" does not parse, and v1's "no limit" is beyond any RAM.
            let limit = read(group.join(file)).and_then(|t| t.trim().parse::<u64>().ok());
            least = match (least, limit) {
                (Some(a), Some(b)) => Some(std::cmp::min::<u64>(a, b)),
                (a, b) => a.or(b),
            };
            if group == base || !group.pop() || !group.starts_with(&base) {
                break;
            }
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram() {
        assert_eq!(
            ram_bytes("MemFree: 1 kB\nMemTotal:       16000 kB\n"),
            Some(16_384_000)
        );
        assert_eq!(ram_bytes("MemTotal: lots"), None);
        assert!(available_bytes() > 0);
    }

    #[test]
    fn a_parents_limit_binds() {
        let root = std::env::temp_dir().join(format!("antler-cgroup-{}", std::process::id()));
        let leaf = root.join("system.slice/antler.service");
        std::fs::create_dir_all(&leaf).unwrap();
        std::fs::write(leaf.join("memory.max"), "max\n").unwrap();
        std::fs::write(root.join("system.slice/memory.max"), "536870912\n").unwrap();
        assert_eq!(
            group_limit("0::/system.slice/antler.service\n", &root),
            Some(512 << 20)
        );
        assert_eq!(group_limit("0::/\n", &root), None);
        assert_eq!(group_limit("garbage", &root), None);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
