//! The `antler` binary.

use std::process::ExitCode;

use chunkserver::antler::Antler;

fn main() -> ExitCode {
    let status = chunkserver::run::run(std::env::args_os(), &Antler);
    ExitCode::from(u8::from(status))
}
