//! A back end of tgtd that can be held: a small library preloaded into it delays `pwrite`, and
//! `pread` if asked.
//!
//! What tgt has given to its back end no session can call back; the write lands when the disk
//! gets to it. That is the hardest place of a ghost write, and the one that only a barrier proves
//! empty.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{must, require};
use crate::scratch::Scratch;

const SOURCE: &str = include_str!("slow_backend.c");

/// A gate that writes of one tgtd's back end wait at.
#[derive(Debug)]
pub struct SlowBackend {
    library: PathBuf,
    gate: PathBuf,
    late: Duration,
}

impl SlowBackend {
    /// Builds the library in `scratch`. A write that waited at the gate lands `late` after the
    /// gate is opened.
    pub fn build(scratch: &Scratch, late: Duration) -> Self {
        Self::build_in(&scratch.sub("slow-backend"), late)
    }

    /// The same in a directory of its own, for a second tgtd.
    pub fn build_in(dir: &Path, late: Duration) -> Self {
        let source = dir.join("slow_backend.c");
        std::fs::write(&source, SOURCE).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
        let library = dir.join("slow_backend.so");
        let mut compiler = Command::new(require("cc"));
        compiler.args(["-O1", "-shared", "-fPIC", "-o"]);
        must(compiler.arg(&library).arg(&source).arg("-ldl"));
        Self {
            library,
            gate: dir.join("gate"),
            late,
        }
    }

    /// What tgtd must have in its environment ([`crate::tgt::TgtSpec::environment`]).
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        vec![
            ("LD_PRELOAD".to_owned(), text(&self.library)),
            ("ANTLER_BACKEND_GATE".to_owned(), text(&self.gate)),
            (
                "ANTLER_BACKEND_LATE_MS".to_owned(),
                self.late.as_millis().to_string(),
            ),
        ]
    }

    /// Writes that reach the back end from now on wait.
    pub fn hold(&self) {
        std::fs::write(&self.gate, "").unwrap_or_else(|e| panic!("{}: {e}", self.gate.display()));
    }

    /// Reads wait as well.
    pub fn hold_all(&self) {
        let reads = self.reads();
        std::fs::write(&reads, "").unwrap_or_else(|e| panic!("{}: {e}", reads.display()));
        self.hold();
    }

    fn reads(&self) -> PathBuf {
        self.gate.with_extension("reads")
    }

    /// Ends [`SlowBackend::hold`] and [`SlowBackend::hold_all`].
    pub fn release(&self) {
        let _ = std::fs::remove_file(self.reads());
        // Missing when nothing was held.
        let _ = std::fs::remove_file(&self.gate);
    }

    /// Writes that have waited or still do.
    pub fn entered(&self) -> u64 {
        self.count("entered")
    }

    /// Writes that have waited and landed since.
    pub fn left(&self) -> u64 {
        self.count("left")
    }

    fn count(&self, what: &str) -> u64 {
        let file = self.gate.with_extension(what);
        std::fs::metadata(file).map_or(0, |meta| meta.len())
    }
}

impl Drop for SlowBackend {
    fn drop(&mut self) {
        self.release();
    }
}
