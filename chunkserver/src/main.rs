//! The `antler` binary.

use std::process::ExitCode;

use chunkserver::ops::Unassembled;

fn main() -> ExitCode {
    let status = chunkserver::run::run(std::env::args_os(), &Unassembled);
    ExitCode::from(u8::from(status))
}
