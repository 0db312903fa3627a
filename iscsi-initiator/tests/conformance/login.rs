//! The login as a session sees it, and the end of a session.

use super::*;

/// §11.14
#[test]
fn nothing_sent_after_logout() {
    let mut peer = plain();
    peer.read(512);
    let itt = peer.next().generic().task_tag;
    let tag = peer.session.logout().expect("open");
    assert!(peer.all().is_empty(), "drains first");
    let pdu = peer.last_data_in(itt, 0, 0);
    peer.send(pdu, &bytes(512));
    assert_eq!(peer.outcomes().len(), 1);
    let request = peer.next();
    assert_eq!(
        (request.opcode(), request.header[1]),
        (opcode::LOGOUT_REQUEST, 0x80)
    );
    assert!(peer.session.ping(peer.now, 0).is_err());
    let response = LogoutResponse {
        opcode: opcode::LOGOUT_RESPONSE,
        flags: flag::FINAL,
        task_tag: request.generic().task_tag,
        stat_sn: peer.count(),
        ..Default::default()
    };
    peer.send(response, b"");
    let events = peer.events();
    assert!(matches!(&events[0], Event::Done(done, Outcome::LoggedOut(0)) if *done == tag));
    assert!(matches!(events[1], Event::Closed(_)) && peer.session.is_closed());
}

/// The two requests of a discovery login, and its session.
fn discovery() -> ([String; 2], Peer) {
    let mut config = config(Offer::default());
    config.login.target_name = None;
    let mut peer = Peer::new(config);
    let requests = [(0, 1), (1, 3)].map(|(stage, next)| {
        let text = String::from_utf8_lossy(&peer.next().data).into_owned();
        let response = peer.login_response(stage, next);
        peer.send(response, b"");
        text
    });
    (requests, peer)
}

/// §4.2.7.1, §13: and no key that means nothing there is proposed.
#[test]
fn discovery_needs_no_target_name() {
    let ([first, offer], _) = discovery();
    assert!(first.contains("SessionType=Discovery\0") && !first.contains("TargetName="));
    for irrelevant in [
        "InitialR2T",
        "MaxBurstLength",
        "MaxConnections",
        "TaskReporting",
    ] {
        assert!(!offer.contains(irrelevant), "{offer}");
    }
}

/// §13.21: it asks, and logs out.
#[test]
fn discovery_session_requests_limited() {
    let (_, mut peer) = discovery();
    let text = peer.session.text(b"SendTargets=All\0".to_vec());
    text.expect("open");
    let request = peer.next();
    assert_eq!(request.opcode(), opcode::TEXT_REQUEST);
    let answer = peer.text_response(request.generic().task_tag, u32::MAX);
    peer.send(answer, b"TargetName=iqn.a\0");
    peer.session.logout().expect("open");
    let sent = peer.all();
    assert_eq!((sent.len(), sent[0].opcode()), (1, opcode::LOGOUT_REQUEST));
}

/// §13.21: neither silence nor unacknowledged answers nor a request of the target makes a discovery
/// session send anything but text and a logout.
#[test]
fn discovery_session_neither_pings_nor_acknowledges() {
    let (_, mut peer) = discovery();
    let text = peer.session.text(b"SendTargets=All\0".to_vec());
    let itt = peer.next().generic().task_tag;
    let message = peer.async_message(4);
    peer.send(message, b"");
    for _ in 0..10 {
        peer.now = peer.now + Duration::from_secs(1);
        peer.session.handle_timeout(peer.now);
        assert!(peer.all().is_empty());
    }
    assert_eq!(peer.session.poll_timeout(), None);
    assert_eq!(peer.session.ping(peer.now, 0), Err(SubmitError::Discovery));
    let reset = peer.session.manage(Function::LunReset, LUN, None);
    assert_eq!(reset, Err(SubmitError::Discovery));
    let command = Command {
        lun: LUN,
        cdb: [0; 16],
        transfer: Transfer::None,
        attribute: Attribute::Simple,
    };
    assert_eq!(peer.session.submit(command), Err(SubmitError::Discovery));
    let answer = peer.text_response(itt, u32::MAX);
    peer.send(answer, b"TargetName=iqn.a\0");
    let done = (
        text.expect("open"),
        Outcome::Text(b"TargetName=iqn.a\0".to_vec()),
    );
    assert_eq!(peer.outcomes(), [done]);
}

/// A login through both stages: its requests, what it yielded, and the session.
fn both_stages() -> (Vec<peer::Sent>, iscsi_initiator::login::LoggedIn, Peer) {
    let mut peer = Peer::new(config(Offer::default()));
    let mut requests = vec![peer.next()];
    for (stage, next) in [(0, 1), (1, 3)] {
        let response = peer.login_response(stage, next);
        peer.send(response, b"");
        requests.extend(peer.all());
    }
    assert_eq!(requests.len(), 2);
    let events = peer.events();
    let [Event::LoggedIn(login)] = &events[..] else {
        panic!("{events:?}");
    };
    (requests, **login, peer)
}

/// §11.12
#[test]
fn isid_tsih_cid_version_constant_in_login() {
    for request in both_stages().0 {
        let login: LoginRequest = request.as_();
        assert_eq!(login.opcode, 0x43, "immediate");
        assert_eq!(login.isid, [0x80, 1, 2, 3, 4, 5]);
        assert_eq!(login.tsih.get(), 0);
        assert_eq!(request.header[20..24], [0; 4], "CID");
        assert_eq!(request.header[2..4], [0; 2], "versions");
    }
}

/// §11.12.6
#[test]
fn tsih_zero_for_new_session() {
    let requests = both_stages().0;
    assert!(requests
        .iter()
        .all(|request| request.as_::<LoginRequest>().tsih.get() == 0));
}

/// §11.13.3
#[test]
fn tsih_taken_from_final_response() {
    assert_eq!(both_stages().1.tsih, 9);
    let mut peer = Peer::new(config(Offer::default()));
    peer.next();
    let response = peer.login_response(0, 1);
    peer.send(response, b"");
    peer.next();
    let without = LoginResponse {
        tsih: U16::new(0),
        ..peer.login_response(1, 3)
    };
    peer.send(without, b"");
    peer.broke_with("TSIH");
}

/// §11.12.8
#[test]
fn login_cmdsn_constant_and_first_command_same() {
    let (requests, _, mut peer) = both_stages();
    for request in requests {
        assert_eq!(request.as_::<LoginRequest>().cmd_sn.get(), FIRST_CMD_SN);
    }
    peer.read(512);
    assert_eq!(peer.next().generic().sn.get(), FIRST_CMD_SN);
}

/// §6.3
#[test]
fn login_one_outstanding_one_itt() {
    let requests = both_stages().0;
    let tags = requests.iter().map(|request| request.generic().task_tag);
    assert_eq!(tags.collect::<std::collections::HashSet<_>>().len(), 1);
    let mut peer = Peer::new(config(Offer::default()));
    assert_eq!(peer.all().len(), 1);
    assert!(peer.all().is_empty(), "the next one after the answer");
}

/// §11.13.5, §6.3.3: the login is over when both sides say T with NSG 3, not before.
#[test]
fn final_response_needs_t_and_nsg3_in_both() {
    let mut peer = Peer::new(config(Offer::default()));
    peer.next();
    let response = peer.login_response(0, 1);
    peer.send(response, b"");
    peer.next();
    let not_yet = LoginResponse {
        flags: LoginRequest::stage_flags(false, false, 1, 0),
        ..peer.login_response(1, 3)
    };
    peer.send(not_yet, b"");
    assert!(peer.events().is_empty() && !peer.session.is_open());
    let again = peer.next();
    assert_eq!((again.header[1], again.data.len()), (0x87, 0));
    let response = peer.login_response(1, 3);
    peer.send(response, b"");
    assert!(matches!(peer.events()[..], [Event::LoggedIn(_)]));
}

/// §7.12: a negotiation that fails closes the connection and yields no session.
#[test]
fn negotiation_failure_closes() {
    for keys in [
        &b"MaxBurstLength=1\0"[..],
        b"InitialR2T=Maybe\0",
        b"MaxOutstandingR2T=9\0",
        b"HeaderDigest=CRC32C\0",
        b"MaxRecvDataSegmentLength=100\0",
        b"ErrorRecoveryLevel=1\0",
        b"no pair",
    ] {
        let mut peer = Peer::new(config(Offer::default()));
        peer.next();
        let response = peer.login_response(0, 1);
        peer.send(response, b"");
        peer.next();
        let response = peer.login_response(1, 3);
        peer.send(response, keys);
        let events = peer.events();
        assert!(
            matches!(events[..], [Event::LoginFailed(_), Event::Closed(_)]),
            "{events:?}"
        );
        assert!(peer.session.is_closed() && peer.all().is_empty());
    }
}

/// §6.1: 8192 bytes of keys in one sequence are fine, whatever is in them.
#[test]
fn accepts_8192_bytes_of_keys() {
    let mut keys = Vec::new();
    for n in 0..40 {
        keys.extend(format!("X-{n:03}={}\0", "v".repeat(190)).into_bytes());
    }
    keys.truncate(8192);
    let mut peer = Peer::new(config(Offer::default()));
    peer.next();
    let response = peer.login_response(0, 1);
    peer.send(response, b"");
    peer.next();
    let not_yet = LoginResponse {
        flags: LoginRequest::stage_flags(false, false, 1, 0),
        ..peer.login_response(1, 3)
    };
    assert!(keys.len() > 7000);
    peer.send(not_yet, &keys);
    let reply = String::from_utf8_lossy(&peer.next().data).into_owned();
    assert_eq!(reply.matches("=NotUnderstood\0").count(), 40);
    let response = peer.login_response(1, 3);
    peer.send(response, b"");
    assert!(matches!(peer.events()[..], [Event::LoggedIn(_)]));
}

/// §13.25
#[test]
fn marker_keys_answered_reject_or_no() {
    let mut peer = Peer::new(config(Offer::default()));
    peer.next();
    let response = peer.login_response(0, 1);
    peer.send(response, b"");
    peer.next();
    let not_yet = LoginResponse {
        flags: LoginRequest::stage_flags(false, false, 1, 0),
        ..peer.login_response(1, 3)
    };
    peer.send(
        not_yet,
        b"IFMarker=No\0OFMarker=Yes\0IFMarkInt=2048\0OFMarkInt=1~2\0",
    );
    let reply = peer.next().data;
    assert_eq!(
        reply,
        b"IFMarker=No\0OFMarker=No\0IFMarkInt=Reject\0OFMarkInt=Reject\0"
    );
}

/// A session with a task of each kind in flight ends: their tags, and all events.
fn ended_with_everything_open() -> (Vec<Tag>, Vec<Event>) {
    let mut peer = plain();
    let mut tags = vec![peer.read(512), peer.write(&bytes(4096))];
    tags.push(peer.session.ping(peer.now, 3).expect("open"));
    tags.push(peer.session.ping(peer.now, 3).expect("open"));
    tags.push(peer.session.text(Vec::new()).expect("open"));
    let reset = peer.session.manage(Function::LunReset, LUN, None);
    tags.push(reset.expect("open"));
    peer.session.close(PathCause::Administrative("test"));
    peer.session.close(PathCause::Administrative("again"));
    (tags, peer.events())
}

/// §7.15: each task of a session that ends has its one outcome before the end is told.
#[test]
fn all_tasks_terminated_before_new_session() {
    let (mut tags, events) = ended_with_everything_open();
    let mut ended: Vec<_> = events[..events.len() - 1]
        .iter()
        .map(|event| match event {
            Event::Done(tag, Outcome::Lost { .. }) => *tag,
            other => panic!("{other:?}"),
        })
        .collect();
    ended.sort_unstable();
    tags.sort_unstable();
    assert_eq!(ended, tags);
}

/// §6.3.5.1: the end is the last that is told, once.
#[test]
fn i_t_nexus_loss_reported_up() {
    let (_, events) = ended_with_everything_open();
    let is_end = |event: &&Event| matches!(event, Event::Closed(_));
    assert!(events.last().as_ref().is_some_and(is_end));
    assert_eq!(events.iter().filter(is_end).count(), 1);
}
