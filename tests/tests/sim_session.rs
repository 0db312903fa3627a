//! Real iSCSI sessions over a network in memory, against a simulated target: what one path does.

use blockdev::path::{Command, Control, LoginAs, PathPort, PathSession};
use blockdev::sim::{Faults, Host};
use blockdev::{Instant, IoCtx, Pool, Sector};
use iscsi_initiator::establish::Initiator;
use iscsi_initiator::isid::Role;
use iscsi_initiator::path::{IscsiPort, PortConfig};
use std::rc::Rc;
use std::time::Duration;
use tests::sim::net::Cut;
use tests::sim::site::{for_each_seed, Site, INITIATOR, TARGET};

fn port(site: &Site, pool: &Pool) -> IscsiPort {
    let host = Host::new(&site.world.rt());
    let net = Rc::new(site.net.clone());
    let config = PortConfig {
        portal: site.nodes[0].portals[0],
        source: None,
        target: TARGET.to_owned(),
        lun: 1,
        role: Role::Serve,
        shard: 0,
    };
    let initiator = Initiator::new(host.rt(), net, pool.clone(), INITIATOR);
    IscsiPort::new(initiator, config).expect("a LUN")
}

fn login(site: &Site, port: &IscsiPort) -> Rc<dyn PathSession> {
    let deadline = site.world.now() + Duration::from_secs(5);
    let login = port.login(LoginAs::Own, deadline);
    site.world.block_on(login).expect("logged in")
}

fn write(at: u64, pool: &Pool, bytes: &[u8]) -> Command {
    Command::Write {
        at: Sector(at),
        data: pool.copy_now(bytes),
        want: Default::default(),
    }
}

#[test]
fn data_of_every_size_pass_with_every_manner_of_target() {
    for_each_seed(40, |seed| {
        let site = Site::new(seed, 1, 1 << 16, Faults::none());
        let pool = Pool::new(64 << 20);
        let session = login(&site, &port(&site, &pool));
        let identity = session.identity();
        assert_eq!(identity.vendor, "IET");
        assert_eq!(identity.geometry.sectors, 1 << 16);
        assert!(identity.geometry.write_cache && identity.geometry.fua);
        assert!(identity.wwid.is_some());
        for sectors in [1u32, 8, 9, 128, 700, 2048] {
            let bytes: Vec<u8> = (0..sectors as usize * 512)
                .map(|_| site.chance.next() as u8)
                .collect();
            let ctx = IoCtx::foreground();
            let (_, written) = session.submit(write(24, &pool, &bytes), ctx);
            site.world.block_on(written).expect("written");
            let at = Sector(24);
            let (_, read) = session.submit(Command::Read { at, sectors }, ctx);
            let read = site.world.block_on(read).expect("read").into_data();
            assert_eq!(read.to_vec(), bytes);
        }
        let deadline = Instant::FAR;
        for control in [
            Control::LunReset {
                ends_commands: false,
            },
            Control::Ping { bytes: 4096 },
        ] {
            let done = session.control(control, deadline);
            site.world.block_on(done).expect("done");
        }
        site.world.block_on(session.logout(Instant::FAR));
        site.world.run_for(Duration::from_millis(10));
        assert_eq!(site.nodes[0].target.sessions(), 0);
    });
}

#[test]
fn a_login_ends_the_older_session_of_its_port() {
    let site = Site::new(1, 1, 1 << 16, Faults::none());
    let pool = Pool::new(64 << 20);
    let port = port(&site, &pool);
    let first = login(&site, &port);
    assert!(first.is_alive());
    let second = login(&site, &port);
    site.world.run_for(Duration::from_millis(10));
    assert!(!first.is_alive() && second.is_alive());
    assert_eq!(site.nodes[0].target.sessions(), 1);
}

#[test]
fn what_was_sent_into_a_silent_cut_lands_after_it() {
    let mut landed = 0;
    for seed in 1..=60 {
        let site = Site::new(seed, 1, 1 << 16, Faults::none());
        let pool = Pool::new(64 << 20);
        let session = login(&site, &port(&site, &pool));
        let portal = site.nodes[0].portals[0];
        site.net.cut(portal, Cut::Silent);
        let ctx = IoCtx::foreground();
        let (_, written) = session.submit(write(0, &pool, &[7; 4096]), ctx);
        site.world.run_for(Duration::from_millis(50));
        session.abort(blockdev::PathCause::Silent(Duration::from_millis(50)));
        assert!(site.world.block_on(written).is_err());
        site.net.cut(portal, Cut::None);
        site.world.run_for(Duration::from_secs(2));
        landed += u32::from(site.nodes[0].medium.peek(Sector(0), 1)[0] == 7);
    }
    assert!((1..60).contains(&landed), "{landed} ghosts of 60");
}
