//! From the command line to an exit status.
//!
//! Results go to standard output (text, or exactly one JSON object), everything else to standard error. A command
//! that fails as a whole prints `{"error":…}` as that object. The commands that need the daemon ask it through the
//! admin socket named in the configuration.

use std::cell::Cell;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Parser;
use serde::de::DeserializeOwned;
use serde::Serialize;

use crate::admin::client::Client;
use crate::admin::{Answer, Ids, LegFill, LegName, PathName, Request, VolumeName};
use crate::cli::{
    BenchCommand, BenchIscsi, Cli, Command, DeviceCommand, LegArgs, LegCommand, LegFillArgs,
    PathArgs, PathCommand, QuarantineCommand, ScrubAction, VolumeCommand,
};
use crate::config::{self, Config, Environment, HostPort, Loaded};
use crate::daemon::Daemon;
use crate::exit::{ExitStatus, Failure};
use crate::model::{Arrays, PathEvents, Paths, Status};
use crate::names;
use crate::ops::Ops;
use crate::render;
use crate::report::*;
use crate::system;

/// `status --watch` refreshes this often.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the command line. Never panics on what the user wrote.
pub fn run(args: impl IntoIterator<Item = OsString>, ops: &dyn Ops) -> ExitStatus {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            if e.exit_code() == 0 {
                return ExitStatus::Done;
            }
            if args.iter().any(|arg| arg == "--json") {
                print_failure(&Failure::usage(e.render().to_string().trim_end()));
            }
            return ExitStatus::Usage;
        }
    };
    system::start_log();
    let runner = Runner {
        cli: &cli,
        ops,
        shown: Cell::new(false),
    };
    match runner.dispatch() {
        Ok(status) => status,
        Err(failure) => {
            for line in failure.text.lines() {
                eprintln!("{}", render::clean(line));
            }
            if cli.json && !runner.shown.get() {
                print_failure(&failure);
            }
            failure.exit
        }
    }
}

/// The one object of a command that has no other. Standard output that takes nothing is no second failure.
fn print_failure(failure: &Failure) {
    let object = serde_json::json!({ "error": failure });
    let _ = print(&format!("{object}\n"));
}

struct Runner<'a> {
    cli: &'a Cli,
    ops: &'a dyn Ops,
    /// A result is on standard output.
    shown: Cell<bool>,
}

type Outcome = Result<ExitStatus, Failure>;

impl Runner<'_> {
    fn dispatch(&self) -> Outcome {
        match &self.cli.command {
            Command::Serve => self.serve(),
            Command::Check => self.check(),
            Command::Discover { portals } => self.discover(portals),
            Command::Device(DeviceCommand::Info { name }) => self.device_info(name),
            Command::Volume(command) => self.volume(command),
            Command::Status { watch: true } => self.watch(),
            Command::Status { watch: false } => {
                let status: Status = self.ask(&Request::Status {})?;
                self.show(&status, render::status::page)
            }
            Command::Paths { events: true, .. } => {
                let events: PathEvents = self.ask(&Request::PathEvents {})?;
                self.show(&events, render::paths::events)
            }
            Command::Paths { format, maps, .. } => {
                // What is written wrong is said whether or not the daemon answers.
                if let Some(format) = format {
                    render::wildcards::judge(format, *maps)?;
                }
                let paths: Paths = self.ask(&Request::Paths {})?;
                let text = match format {
                    Some(format) if *maps => render::wildcards::maps(&paths, format)?,
                    Some(format) => render::wildcards::paths(&paths, format)?,
                    None => render::paths::tree(&paths),
                };
                self.show(&paths, |_| text)
            }
            Command::Arrays => {
                let arrays: Arrays = self.ask(&Request::Arrays {})?;
                self.show(&arrays, render::arrays::detail)
            }
            Command::Path(command) => {
                let name = |a: &PathArgs| PathName {
                    device: a.device.clone(),
                    portal: a.portal.to_string(),
                };
                self.order(&match command {
                    PathCommand::Fail(a) => Request::PathFail(name(a)),
                    PathCommand::Reinstate(a) => Request::PathReinstate(name(a)),
                })
            }
            Command::Leg(command) => self.order(&leg_request(command)),
            Command::Scrub { volume, action } => {
                let volume = VolumeName {
                    volume: volume.clone(),
                };
                self.order(&match action {
                    ScrubAction::Start => Request::ScrubStart(volume),
                    ScrubAction::Stop => Request::ScrubStop(volume),
                    ScrubAction::Status => Request::ScrubStatus(volume),
                })
            }
            Command::Quarantine(command) => self.order(&match command {
                QuarantineCommand::List => Request::QuarantineList {},
                QuarantineCommand::Restore(a) => Request::QuarantineRestore(Ids {
                    ids: a.ids.clone(),
                    all: a.all || a.ids.is_empty(),
                }),
                QuarantineCommand::Purge(a) => Request::QuarantinePurge(Ids {
                    ids: a.ids.clone(),
                    all: a.all,
                }),
            }),
            Command::Bench(command) => self.bench(command),
        }
    }

    /// Prints a result, as JSON or as text.
    fn show<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Outcome {
        let out = self.worded(value, text)?;
        self.shown.set(true);
        print(&out).map(|()| ExitStatus::Done)
    }

    /// What is printed of it.
    fn worded<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<String, Failure> {
        if !self.cli.json {
            return Ok(text(value));
        }
        let json = serde_json::to_string(value)
            .map_err(|e| Failure::problem(format!("the result cannot be written: {e}")))?;
        Ok(json + "\n")
    }

    /// The configuration with its warnings unsaid; errors end the command with status 2.
    fn config(&self) -> Result<Config, Failure> {
        self.loaded().and_then(accept)
    }

    fn loaded(&self) -> Result<Loaded, Failure> {
        let mut loaded = config::load(&self.cli.config_path(), &Environment::here());
        if let Some(config) = &loaded.config {
            let deeper = self.ops.check(config);
            if !deeper.is_empty() {
                loaded.errors = deeper;
                loaded.config = None;
            }
        }
        Ok(loaded)
    }

    /// For commands that need none: the one named, or the default one if it is there and valid.
    fn optional_config(&self) -> Result<Option<Config>, Failure> {
        if self.cli.config.is_some() {
            return self.config().map(Some);
        }
        if !self.cli.config_path().exists() {
            return Ok(None);
        }
        Ok(self.loaded()?.config)
    }

    fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Failure> {
        let socket = self.config()?.admin.socket;
        Client::connect(&socket)?.ask(request)
    }

    /// A command for the data plane.
    fn order(&self, request: &Request) -> Outcome {
        let answer: Answer = self.ask(request)?;
        self.show(&answer, |a| match a {
            Answer::Scrub(s) => render::offline::scrub(s),
            Answer::Quarantine(q) => render::offline::quarantine(q),
            Answer::QuarantineDone(d) => {
                let mut text = format!("{} chunks done\n", d.done);
                for why in &d.skipped {
                    text.push_str(&format!("skipped {}\n", render::clean(why)));
                }
                text
            }
            Answer::Done { text } => render::clean(text) + "\n",
        })?;
        Ok(match answer {
            Answer::QuarantineDone(d) if !d.skipped.is_empty() => ExitStatus::Problem,
            _ => ExitStatus::Done,
        })
    }

    fn serve(&self) -> Outcome {
        let config = accept_aloud(self.loaded()?)?;
        system::abort_on_panic();
        let pool_bytes = config
            .chunkserver
            .memory_bytes
            .saturating_sub(config.chunkserver.cache_bytes);
        system::apply(&config.chunkserver, pool_bytes);
        tracing::info!(
            "antler {} starts with {}",
            env!("CARGO_PKG_VERSION"),
            config.path.display()
        );
        for setting in &config.settings {
            tracing::debug!("{} = {}   # {}", setting.key, setting.value, setting.origin);
        }
        let (daemon, port) = Daemon::start(&config)?;
        if let Some(address) = daemon.http() {
            tracing::info!("status page on http://{address}/");
        }
        let served = self.ops.serve(&config, port);
        drop(daemon);
        served.map(|()| {
            tracing::info!("stopped");
            ExitStatus::Done
        })
    }

    fn check(&self) -> Outcome {
        let loaded = self.loaded()?;
        let status = if loaded.errors.is_empty() {
            ExitStatus::Done
        } else {
            ExitStatus::Usage
        };
        if self.cli.json {
            self.show(&loaded.report(), |_| String::new())?;
        } else if loaded.errors.is_empty() {
            print(&loaded.settings_text())?;
        }
        for error in &loaded.errors {
            eprintln!("{}", render::clean(&error.to_string()));
        }
        // Beside errors, warnings would only be in the way: half of them come from what could not be read.
        for warning in loaded.warnings.iter().filter(|_| loaded.errors.is_empty()) {
            eprintln!("{}", warned(warning));
        }
        Ok(status)
    }

    fn discover(&self, portals: &[HostPort]) -> Outcome {
        /// Several portals in one object.
        #[derive(Serialize)]
        struct Discoveries<'a> {
            portals: &'a [Discovery],
            /// Of the portals that gave no answer.
            errors: &'a [Failure],
        }
        let iscsi = self.iscsi_defaults()?;
        let mut found = Vec::new();
        let mut failures = Vec::new();
        for result in self.ops.discover(portals, &iscsi) {
            match result {
                Ok(discovery) => found.push(discovery),
                Err(failure) => failures.push(failure),
            }
        }
        match found.as_slice() {
            [] => {}
            [one] if portals.len() == 1 => drop(self.show(one, render::offline::discovery)?),
            several => {
                let all = Discoveries {
                    portals: several,
                    errors: &failures,
                };
                self.show(&all, |all| {
                    all.portals.iter().map(render::offline::discovery).collect()
                })?;
            }
        }
        match failures.into_iter().reduce(|a, b| Failure {
            exit: a.exit.max(b.exit),
            text: format!("{}\n{}", a.text, b.text),
        }) {
            None => Ok(ExitStatus::Done),
            Some(failure) => Err(failure),
        }
    }

    /// `[iscsi]` of the configuration, or the defaults where there is none.
    fn iscsi_defaults(&self) -> Result<config::Iscsi, Failure> {
        if let Some(config) = self.optional_config()? {
            return Ok(config.iscsi);
        }
        let path = self.cli.config_path();
        let defaults = config::parse("defaults", "", &path, &Environment::here());
        accept(defaults).map(|c| c.iscsi)
    }

    fn device_info(&self, name: &str) -> Outcome {
        let config = self.config()?;
        names::device(&config, name)?;
        let info = self.ops.device_info(&config, name)?;
        self.show(&info, render::offline::device)?;
        Ok(path_verdict(&info))
    }

    fn volume(&self, command: &VolumeCommand) -> Outcome {
        use VolumeCommand as V;
        let config = self.config()?;
        let name = match command {
            V::List => None,
            V::Create { name, .. }
            | V::Info { name }
            | V::Check { name, .. }
            | V::Export { name, .. }
            | V::Grow { name }
            | V::Upgrade { name } => Some(name),
            V::Import(import) => Some(&import.name),
            V::Claim(claim) => Some(&claim.name),
        };
        if let Some(name) = name {
            names::volume(&config, name)?;
        }
        let changed =
            |c: &VolumeChanged| format!("volume {}: {}\n", c.name, render::clean(&c.text));
        match command {
            V::Create {
                name,
                force,
                no_mirror_sync,
            } => {
                let created = self
                    .ops
                    .volume_create(&config, name, *force, !no_mirror_sync)?;
                self.show(&created, render::offline::volume_created)
            }
            V::List => {
                let list = VolumeList {
                    volumes: self.ops.volume_info(&config, None)?,
                };
                self.show(&list, render::offline::volume_list)
            }
            V::Info { name } => match self.ops.volume_info(&config, Some(name))?.first() {
                Some(info) => {
                    self.show(info, render::offline::volume_info)?;
                    Ok(if info.error.is_some() {
                        ExitStatus::Problem
                    } else {
                        ExitStatus::Done
                    })
                }
                None => Err(Failure::problem(format!(
                    "volume {name}: nothing is known of it"
                ))),
            },
            V::Check { name, repair, data } => {
                let check = self.ops.volume_check(&config, name, *repair, *data)?;
                self.show(&check, render::offline::volume_check)?;
                Ok(match check.result {
                    CheckResult::Clean => ExitStatus::Done,
                    CheckResult::Repaired => ExitStatus::Problem,
                    CheckResult::Damaged => ExitStatus::DamageLeft,
                })
            }
            V::Export { name, dir, chunk } => {
                let done = self.ops.volume_export(&config, name, dir, *chunk)?;
                self.show(&done, |d| {
                    format!(
                        "{} exported, {} skipped, {} damaged\n",
                        d.exported, d.skipped, d.damaged
                    )
                })?;
                Ok(if done.damaged > 0 {
                    ExitStatus::Problem
                } else {
                    ExitStatus::Done
                })
            }
            V::Import(import) => {
                let done = self.ops.volume_import(&config, import)?;
                self.show(&done, |d| {
                    format!(
                        "{} imported, {} skipped, {} damaged\n",
                        d.imported, d.skipped, d.damaged
                    )
                })?;
                Ok(if done.damaged > 0 {
                    ExitStatus::Problem
                } else {
                    ExitStatus::Done
                })
            }
            V::Claim(claim) => self.show(&self.ops.volume_claim(&config, claim)?, changed),
            V::Grow { name } => self.show(&self.ops.volume_grow(&config, name)?, changed),
            V::Upgrade { name } => self.show(&self.ops.volume_upgrade(&config, name)?, changed),
        }
    }

    fn watch(&self) -> Outcome {
        let socket = self.config()?.admin.socket;
        let mut client = Client::connect(&socket)?;
        let on_terminal = std::io::stdout().is_terminal();
        loop {
            let status: Status = client.ask(&Request::Status {})?;
            let page = self.worded(&status, render::status::page)?;
            self.shown.set(true);
            let shown = if on_terminal && !self.cli.json {
                // Home, then what is new, then clear what is left of the old page: no flicker.
                let page = page.replace('\n', "\x1b[K\n");
                write_out(&format!("\x1b[H{page}\x1b[J"))
            } else {
                write_out(&page)
            };
            match shown {
                // Nobody reads any more.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {
                    return Ok(ExitStatus::Done);
                }
                shown => shown.map_err(not_written)?,
            }
            std::thread::sleep(WATCH_INTERVAL);
        }
    }

    fn bench(&self, command: &BenchCommand) -> Outcome {
        let refuse = |writes: bool, destructive: bool, what: &str| {
            if writes && !destructive {
                return Err(Failure::usage(format!(
                    "this mode overwrites {what}: say --destructive if that is meant"
                )));
            }
            Ok(())
        };
        let report = match command {
            BenchCommand::Iscsi(args) => {
                refuse(args.load.rw.writes(), args.destructive, &unit(args))?;
                self.ops.bench_iscsi(&self.iscsi_defaults()?, args)?
            }
            BenchCommand::Device(args) => {
                refuse(args.load.rw.writes(), args.destructive, &args.name)?;
                self.ops.bench_device(&self.config()?, args)?
            }
            BenchCommand::Chunk(args) => self.ops.bench_chunk(args)?,
        };
        self.show(&report, render::offline::bench)?;
        Ok(if report.errors > 0 || report.verify_errors > 0 {
            ExitStatus::Problem
        } else {
            ExitStatus::Done
        })
    }
}

fn unit(args: &BenchIscsi) -> String {
    format!("LUN {} of {} at {}", args.lun, args.target, args.portal)
}

fn leg_request(command: &LegCommand) -> Request {
    let name = |a: &LegArgs| LegName {
        volume: a.volume.clone(),
        device: a.device.clone(),
    };
    let fill = |a: &LegFillArgs| LegFill {
        volume: a.volume.clone(),
        device: a.device.clone(),
        full: a.full,
        force: a.force,
    };
    match command {
        LegCommand::Fail(a) => Request::LegFail(name(a)),
        LegCommand::Remove(a) => Request::LegRemove(name(a)),
        LegCommand::Add(a) => Request::LegAdd(fill(a)),
        LegCommand::Replace(a) => Request::LegReplace(fill(a)),
        // clap insists on --alone.
        LegCommand::Run {
            volume,
            device,
            alone: _,
        } => Request::LegRun(LegName {
            volume: volume.clone(),
            device: device.clone(),
        }),
    }
}

/// `device info`: 0 every path ready, 1 some, 3 none reached.
fn path_verdict(info: &DeviceInfo) -> ExitStatus {
    let ready = info
        .paths
        .iter()
        .filter(|p| p.state == ProbeState::Ready)
        .count();
    let reached = info
        .paths
        .iter()
        .any(|p| p.state != ProbeState::Unreachable);
    if ready == info.paths.len() {
        ExitStatus::Done // a local device has no paths
    } else if reached {
        ExitStatus::Problem
    } else {
        ExitStatus::Unreachable
    }
}

fn warned(problem: &config::Problem) -> String {
    render::clean(&match &problem.origin {
        config::Origin::Default => format!("warning: {problem}"),
        origin => format!("{origin}: warning: {}", problem.text),
    })
}

/// The configuration, or all its errors as one failure.
fn accept(loaded: Loaded) -> Result<Config, Failure> {
    let errors: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
    loaded
        .config
        .ok_or_else(|| Failure::usage(errors.join("\n")))
}

/// The same, with the warnings logged.
fn accept_aloud(loaded: Loaded) -> Result<Config, Failure> {
    let config = accept(loaded)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

/// A reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> Result<(), Failure> {
    match write_out(text) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(not_written(e)),
        _ => Ok(()),
    }
}

fn write_out(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

fn not_written(error: std::io::Error) -> Failure {
    Failure::problem(format!("standard output: {error}"))
}
