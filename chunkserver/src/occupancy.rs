//! Whether somebody else has a volume open: asked before a session is made that could end one of his (P11).
//!
//! ISIDs of the role `serve` are derived from the initiator's name and the path, so that whoever logs in with the
//! same name ends the sessions of whoever is logged in. An owner refreshes its claim all the time: a port that
//! may be another's looks at the claim first, by a session of the role `tool` under an ISID of its own, and stays
//! away while that claim lives. Other processes of this node are kept away by the locks of the paths, so that its
//! own claim costs one look and no wait; only beside a running `serve` a claim of this node that was made over other
//! paths is watched like a stranger's.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use blockdev::path::{Isid, LoginAs, LoginError, PathName, PathPort, PathSession};
use blockdev::{Instant, IoError, LocalFuture, ReadSectors, Rt};
use iscsi_initiator::path::IscsiPort;
use raid::claim::{Claim, ALIVE, REFRESH};
use raid::probe::claim_over;
use raid::Uuid;

use crate::data_path::{DataPath, PathLocks};
use crate::exit::Failure;
use crate::ownership::{age, whose};

/// A living owner's claim advances within this time.
pub(crate) const WATCH: Duration = Duration::from_millis(REFRESH.as_millis() as u64 + 1000);
/// How often a claim of uncertain age is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(250);
/// How long the session of a look may take to log out.
const LEAVE: Duration = Duration::from_millis(500);

/// What is known of one volume's other users.
#[derive(Debug)]
pub(crate) struct Occupancy {
    volume: String,
    /// This node.
    node: Uuid,
    /// No other process of this node serves.
    is_alone: bool,
    in_use: RefCell<BTreeMap<String, String>>,
    watching: Cell<usize>,
}

impl Occupancy {
    /// Of a volume that nobody is known to use; `data_path` is this node's.
    pub(crate) fn new(volume: &str, data_path: &DataPath) -> Rc<Occupancy> {
        Occupancy::as_seen_by(data_path.node(), data_path.is_alone(), volume)
    }

    fn as_seen_by(node: Uuid, is_alone: bool, volume: &str) -> Rc<Occupancy> {
        Rc::new(Occupancy {
            volume: volume.to_owned(),
            node,
            is_alone,
            in_use: RefCell::default(),
            watching: Cell::new(0),
        })
    }

    /// Why the volume is left alone, and the way out.
    pub(crate) fn in_use(&self) -> Option<String> {
        self.in_use.borrow().values().next().cloned()
    }

    /// Whether a claim of uncertain age is being watched.
    pub(crate) fn is_watching(&self) -> bool {
        self.watching.get() > 0
    }

    /// Somebody else has `device`.
    pub(crate) fn note(&self, device: &str, text: String) {
        self.in_use.borrow_mut().insert(device.to_owned(), text);
    }

    /// Nobody has it.
    pub(crate) fn clear(&self, device: &str) {
        self.in_use.borrow_mut().remove(device);
    }
}

/// What the ports of one unit know together.
pub(crate) struct Lookout {
    rt: Rt,
    device: String,
    occupancy: Rc<Occupancy>,
    /// What this node writes under, locked against its other processes.
    isids: Vec<Isid>,
    /// The claim was seen to be this node's.
    is_ours: Cell<bool>,
    /// A claim that did not advance while it was watched: whose, and its counter.
    dead: Cell<Option<(Uuid, u64)>>,
}

impl Lookout {
    pub(crate) fn new(
        rt: Rt,
        device: &str,
        occupancy: Rc<Occupancy>,
        isids: Vec<Isid>,
    ) -> Rc<Lookout> {
        Rc::new(Lookout {
            rt,
            device: device.to_owned(),
            occupancy,
            isids,
            is_ours: Cell::new(false),
            dead: Cell::new(None),
        })
    }

    /// Whether nobody else lives on the unit; `Err`: this cannot be told, or somebody does. The first look ends
    /// by `deadline`.
    async fn judge(
        &self,
        session: &dyn ReadSectors,
        sectors: u64,
        deadline: Instant,
    ) -> Result<(), LoginError> {
        let mut claim = self.read(session, sectors, deadline).await?;
        let until = self.rt.now() + WATCH;
        let _watching = Watching::new(&self.occupancy);
        let mut watched = None;
        while let Some(found) = claim {
            if self.is_of_this_process(&found) {
                self.is_ours.set(true);
                break;
            }
            let seen = Some((found.owner.node, found.counter));
            let dead = self.dead.get();
            if dead == seen {
                break;
            }
            let before = watched.or(dead);
            // A command of this node may just have ended: only what advances shows that one runs.
            let is_fresh = !self.is_of_this_node(&found) && self.is_fresh(&found);
            if is_fresh || (before.is_some() && before != seen) {
                return Err(self.refuse(&found));
            }
            if self.rt.now() >= until {
                self.dead.set(seen);
                break;
            }
            watched = seen;
            self.rt.sleep(LOOK).await;
            claim = self.read(session, sectors, until + WATCH).await?;
        }
        self.occupancy.clear(&self.device);
        Ok(())
    }

    async fn read(
        &self,
        session: &dyn ReadSectors,
        sectors: u64,
        deadline: Instant,
    ) -> Result<Option<Claim>, LoginError> {
        let lost = |error: IoError| {
            LoginError::Unreachable(format!("whose the unit is cannot be read: {error}"))
        };
        match self.rt.by(deadline, claim_over(session, sectors)).await {
            Ok(read) => read.map_err(lost),
            Err(_) => Err(LoginError::Unreachable(
                "whose the unit is was not read in time".to_owned(),
            )),
        }
    }

    fn is_of_this_node(&self, claim: &Claim) -> bool {
        claim.owner.node == self.occupancy.node
    }

    /// Nobody else of this node can have made it and live.
    fn is_of_this_process(&self, claim: &Claim) -> bool {
        let over_these_paths = claim
            .owner
            .isids
            .iter()
            .any(|isid| self.isids.contains(isid));
        self.is_of_this_node(claim) && (over_these_paths || self.occupancy.is_alone)
    }

    /// By this node's clock: one from the future proves nothing.
    fn is_fresh(&self, claim: &Claim) -> bool {
        let now = self.rt.wall().0;
        now.checked_sub(claim.time.0)
            .is_some_and(|age| age < ALIVE.as_micros() as u64)
    }

    fn refuse(&self, claim: &Claim) -> LoginError {
        let volume = &self.occupancy.volume;
        let text = format!(
            "in use: {} is claimed by {}, refreshed {}: stop that `antler serve`, or `antler volume claim {volume} \
             --take` takes the volume over",
            self.device,
            whose(claim),
            age(claim, self.rt.wall())
        );
        self.occupancy.note(&self.device, text.clone());
        LoginError::Misconfigured(text)
    }
}

/// Refuses (status 1) a unit that anybody has open. `look` logs in for the look; a unit that it does not reach is left
/// to whoever means to use it.
pub(crate) async fn ensure_unclaimed(
    rt: &Rt,
    look: &IscsiPort,
    device: &str,
    deadline: Instant,
) -> Result<(), Failure> {
    let Ok(session) = look.open(LoginAs::Own, deadline).await else {
        return Ok(());
    };
    let sectors = session.identity().geometry.sectors;
    let occupancy = Occupancy::as_seen_by(Uuid::random(rt), true, "VOLUME");
    let lookout = Lookout::new(rt.clone(), device, occupancy, Vec::new());
    let judged = lookout.judge(&*session, sectors, deadline).await;
    session.logout(rt.now() + LEAVE).await;
    judged.map_err(|error| Failure::problem(error.to_string()))
}

/// Counts those who watch, however they end.
struct Watching<'a>(&'a Occupancy);

impl Watching<'_> {
    fn new(occupancy: &Occupancy) -> Watching<'_> {
        occupancy.watching.set(occupancy.watching.get() + 1);
        Watching(occupancy)
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.0.watching.set(self.0.watching.get() - 1);
    }
}

/// A port that looks before it logs in.
pub(crate) struct CarefulPort {
    /// Logs in for service.
    pub(crate) port: Rc<IscsiPort>,
    /// Looks: the same way under an ISID of its own, for the lookout that the ports of the unit share. `None`: the
    /// unit is taken from whoever has it.
    pub(crate) look: Option<(Rc<IscsiPort>, Rc<Lookout>)>,
    /// As long as there are ports.
    pub(crate) _locks: Option<Rc<PathLocks>>,
}

impl PathPort for CarefulPort {
    fn name(&self) -> PathName {
        self.port.name()
    }

    fn isid(&self) -> Isid {
        self.port.isid()
    }

    fn login(
        &self,
        who: LoginAs,
        deadline: Instant,
    ) -> LocalFuture<Result<Rc<dyn PathSession>, LoginError>> {
        // A recorded session is fenced by who has judged its claim already.
        let look = self
            .look
            .clone()
            .filter(|(_, lookout)| !lookout.is_ours.get());
        let (port, Some((look, lookout)), LoginAs::Own) = (self.port.clone(), look, &who) else {
            return self.port.login(who, deadline);
        };
        Box::pin(async move {
            let rt = lookout.rt.clone();
            let session = look.open(LoginAs::Own, deadline).await?;
            let sectors = session.identity().geometry.sectors;
            let begun = rt.now();
            let judged = lookout.judge(&*session, sectors, deadline).await;
            let leave = rt.now() + LEAVE;
            rt.spawn(async move { session.logout(leave).await });
            judged?;
            // What was watched on purpose is no lateness of the target.
            port.login(who, deadline + (rt.now() - begun)).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockdev::rt::Wall;
    use blockdev::sim::{MemDevice, MemTiming, VirtualRt};
    use blockdev::{BlockDevice, Geometry, IoCtx, IoVec, Op, Pool, Sector};
    use raid::claim::{write_claim, Owner};
    use raid::format::{create, CreateOptions};
    use raid::probe::Member;
    use tempfile::TempDir;

    const SECTORS: u64 = 131_072;
    const ME: Uuid = Uuid([1; 16]);
    const OTHER: Uuid = Uuid([2; 16]);
    const ISID: Isid = Isid([0x80, 1, 2, 3, 4, 5]);
    const MINUTE: u64 = 60_000_000;

    struct Reader(MemDevice);

    impl ReadSectors for Reader {
        fn read(&self, at: Sector, sectors: u32) -> LocalFuture<Result<IoVec, IoError>> {
            let read = self.0.submit(Op::Read { at, sectors }, IoCtx::metadata());
            Box::pin(async move { read.await.map(|done| done.into_data()) })
        }
    }

    struct Unit {
        rt: Rt,
        pool: Pool,
        device: MemDevice,
        data_path: Rc<DataPath>,
        lookout: Rc<Lookout>,
        _scratch: TempDir,
    }

    impl Unit {
        fn blank(rt: &Rt) -> Unit {
            let (rt, pool) = (rt.clone(), Pool::new(16 << 20));
            let geometry = Geometry::plain(SECTORS);
            let device = MemDevice::new(rt.clone(), pool.clone(), geometry, MemTiming::default());
            let scratch = tempfile::tempdir().unwrap();
            let data_path = Rc::new(DataPath::enter(scratch.path(), ME).unwrap());
            let occupancy = Occupancy::new("vol1", &data_path);
            let lookout = Lookout::new(rt.clone(), "sto1", occupancy, vec![ISID]);
            Unit {
                rt,
                pool,
                device,
                data_path,
                lookout,
                _scratch: scratch,
            }
        }

        async fn formatted(rt: &Rt) -> Unit {
            let unit = Unit::blank(rt);
            let options = CreateOptions {
                name: "vol1".to_owned(),
                equalise: false,
            };
            let legs: [Rc<dyn BlockDevice>; 1] = [Rc::new(unit.device.clone())];
            create(&unit.rt, &unit.pool, &legs, &options, |_, _| {})
                .await
                .unwrap();
            unit
        }

        async fn claim(&self, node: Uuid, counter: u64, time: Wall) {
            self.claim_over(node, &[], counter, time).await;
        }

        async fn claim_over(&self, node: Uuid, isids: &[Isid], counter: u64, time: Wall) {
            let member = Member::read(&self.device).await.unwrap();
            let claim = Claim {
                array: member.superblock.array,
                owner: Owner {
                    node,
                    initiator_name: "iqn.2024-12.test:n".to_owned(),
                    isids: isids.to_vec(),
                },
                counter,
                time,
            };
            write_claim(&self.device, &self.pool, &member.places, &claim)
                .await
                .unwrap();
        }

        /// The verdict, and the time it took.
        async fn look(&self) -> (Result<(), LoginError>, Duration) {
            let begun = self.rt.now();
            let reader = Reader(self.device.clone());
            let deadline = begun + Duration::from_secs(1);
            let judged = self.lookout.judge(&reader, SECTORS, deadline).await;
            (judged, self.rt.now() - begun)
        }
    }

    #[test]
    fn a_claim_of_this_node_and_a_blank_unit_cost_no_wait() {
        let world = VirtualRt::new(1);
        let rt = world.rt();
        world.block_on(async move {
            let blank = Unit::blank(&rt);
            let (judged, took) = blank.look().await;
            assert_eq!(judged, Ok(()));
            assert!(took < LOOK && !blank.lookout.is_ours.get());
            let unit = Unit::formatted(&rt).await;
            unit.claim(ME, 7, rt.wall()).await;
            let (judged, took) = unit.look().await;
            assert_eq!(judged, Ok(()));
            assert!(took < LOOK && unit.lookout.is_ours.get());
        });
    }

    /// Beside a `serve` of this node: what it wrote under ISIDs that are locked now it writes no more, what it
    /// wrote under others it may go on writing.
    #[test]
    fn a_claim_of_this_node_over_other_paths_is_watched_beside_a_serve() {
        let world = VirtualRt::new(5);
        let rt = world.rt();
        world.block_on(async move {
            for (over, is_watched) in [(ISID, false), (Isid([0x80, 9, 9, 9, 9, 9]), true)] {
                for advances in [true, false] {
                    let mut unit = Unit::formatted(&rt).await;
                    let serve = DataPath::lock_patiently(unit.data_path.directory(), ME).unwrap();
                    let data_path = Rc::new(DataPath::enter(serve.directory(), ME).unwrap());
                    let occupancy = Occupancy::new("vol1", &data_path);
                    unit.lookout = Lookout::new(rt.clone(), "sto1", occupancy, vec![ISID]);
                    let now = rt.wall();
                    unit.claim_over(ME, &[over], 7, now).await;
                    let refresh = async {
                        unit.rt.sleep(REFRESH).await;
                        if advances {
                            unit.claim_over(ME, &[over], 8, rt.wall()).await;
                        }
                    };
                    let ((judged, took), ()) = tokio::join!(unit.look(), refresh);
                    let case = format!("{over:?}, advances: {advances}");
                    assert_eq!(judged.is_err(), is_watched && advances, "{case}");
                    assert_eq!(took >= REFRESH, is_watched, "{case}: {took:?}");
                }
            }
        });
    }

    #[test]
    fn a_claim_refreshed_lately_is_left_alone_at_once() {
        let world = VirtualRt::new(2);
        let rt = world.rt();
        world.block_on(async move {
            let unit = Unit::formatted(&rt).await;
            let time = Wall(unit.rt.wall().0 - 800_000);
            unit.claim(OTHER, 7, time).await;
            let (judged, took) = unit.look().await;
            let text = judged.unwrap_err().to_string();
            for part in ["in use: sto1", &OTHER.to_string(), "0.8 s ago", "--take"] {
                assert!(text.contains(part), "no {part:?} in {text}");
            }
            assert!(took < LOOK);
            assert!(unit.lookout.occupancy.in_use().is_some());
        });
    }

    #[test]
    fn a_claim_of_uncertain_age_lives_if_it_advances() {
        let world = VirtualRt::new(3);
        let rt = world.rt();
        world.block_on(async move {
            for ahead in [true, false] {
                let unit = Unit::formatted(&rt).await;
                let now = unit.rt.wall().0;
                let time = Wall(if ahead { now + MINUTE } else { now - MINUTE });
                unit.claim(OTHER, 7, time).await;
                let refresh = async {
                    unit.rt.sleep(REFRESH).await;
                    unit.claim(OTHER, 8, Wall(time.0 + 2_000_000)).await;
                };
                let ((judged, took), ()) = tokio::join!(unit.look(), refresh);
                assert!(judged.is_err(), "ahead: {ahead}");
                assert!(took >= REFRESH && took < WATCH, "{took:?}");
            }
        });
    }

    #[test]
    fn a_claim_that_does_not_advance_is_watched_once() {
        let world = VirtualRt::new(4);
        let rt = world.rt();
        world.block_on(async move {
            let unit = Unit::formatted(&rt).await;
            unit.claim(OTHER, 7, Wall(unit.rt.wall().0 - MINUTE)).await;
            let (judged, took) = unit.look().await;
            assert_eq!(judged, Ok(()));
            assert!(took >= WATCH && !unit.lookout.occupancy.is_watching());
            let (judged, took) = unit.look().await;
            assert_eq!(judged, Ok(()));
            assert!(took < LOOK, "{took:?}");
            // Its owner is back.
            unit.claim(OTHER, 8, Wall(unit.rt.wall().0 - MINUTE)).await;
            let (judged, took) = unit.look().await;
            assert!(judged.is_err() && took < LOOK);
        });
    }
}
