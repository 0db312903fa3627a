//! Secrets: read from files of their own, never printed.
//!
//! A secret comes from a file that neither the group nor the world may read, or from systemd's credentials
//! directory (`$CREDENTIALS_DIRECTORY`, systemd.exec(5)), where the manager guards it. A relative name is
//! looked up there first, then beside the configuration file. One trailing newline is not part of the secret.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// No password is longer; a bound on what is read from a file named by mistake.
const SECRET_BYTES_MAX: u64 = 4096;

/// A secret. It has no `Display`, and `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret that was read from a guarded place.
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    /// The secret itself, for the one place that computes with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// There is no such file.
    #[error("{path}: no such file", path = .0.display())]
    Missing(PathBuf),
    /// The file could not be read.
    #[error("{path}: {why}", path = .0.display(), why = .1)]
    Unreadable(PathBuf, std::io::Error),
    /// Others may read it.
    #[error("{path} may be read by others (mode {mode:04o}): chmod 600 {path}", path = .0.display(), mode = .1)]
    Exposed(PathBuf, u32),
    /// It holds nothing, too much, or no text.
    #[error("{path} {what}", path = .0.display(), what = .1)]
    Malformed(PathBuf, &'static str),
}

/// Reads a secret file. `base` is the directory of the configuration file.
pub fn read(name: &str, base: &Path, credentials: Option<&Path>) -> Result<Secret, SecretError> {
    let path = match credentials.map(|dir| dir.join(name)).filter(|p| p.exists()) {
        Some(path) => path,
        None => base.join(name),
    };
    let guarded = credentials.is_some_and(|dir| path.starts_with(dir));
    let unreadable = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => SecretError::Missing(path.clone()),
        _ => SecretError::Unreadable(path.clone(), e),
    };
    let file = std::fs::File::open(&path).map_err(unreadable)?;
    // Of the open file, not of the name: the name may be changed in between.
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(SecretError::Malformed(path, "is no regular file"));
    }
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o044 != 0 && !guarded {
        return Err(SecretError::Exposed(path, mode));
    }
    let mut text = String::new();
    match file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text) {
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            return Err(SecretError::Malformed(path, "holds no text"))
        }
        Err(e) => return Err(unreadable(e)),
        Ok(n) if n as u64 > SECRET_BYTES_MAX => {
            return Err(SecretError::Malformed(path, "is too long for a secret"))
        }
        Ok(_) => {}
    }
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() {
        return Err(SecretError::Malformed(path, "is empty"));
    }
    Ok(Secret(secret.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guarded_files_only() {
        let dir = std::env::temp_dir().join(format!("antler-secrets-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let put = |name: &str, text: &str, mode: u32| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        put("good", "tiger\n", 0o600);
        put("open", "tiger\n", 0o644);
        put("group", "tiger\n", 0o640);
        put("empty", "\n", 0o600);
        assert_eq!(read("good", &dir, None).unwrap().expose(), "tiger");
        assert!(!format!("{:?}", read("good", &dir, None)).contains("tiger"));
        for exposed in ["open", "group"] {
            let e = read(exposed, &dir, None).unwrap_err();
            assert!(matches!(e, SecretError::Exposed(..)), "{e}");
            assert!(e.to_string().contains("chmod 600"), "{e}");
            assert_eq!(
                read(exposed, Path::new("/"), Some(&dir)).unwrap().expose(),
                "tiger"
            );
        }
        assert!(matches!(
            read("empty", &dir, None),
            Err(SecretError::Malformed(..))
        ));
        assert!(matches!(
            read("absent", &dir, None),
            Err(SecretError::Missing(_))
        ));
        assert!(matches!(
            read(".", &dir, None),
            Err(SecretError::Malformed(..))
        ));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
