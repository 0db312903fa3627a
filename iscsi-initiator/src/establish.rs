//! From a portal to a session: connect, log in, follow redirects, step around known quirks.
//!
//! A redirect (status class 1) is followed to a numeric address, at most three times; a
//! permanent one is reported, because it means that the config is stale. tgt takes the registered
//! number of SHA-256 (7) for SHA-1: a login refused right after CHAP_A=7 is tried once more
//! without it. Everything happens under one deadline of the caller.

use crate::client::{Client, ConnectError};
use crate::isid::{self, IsidSource, Role};
use crate::login::chap::{Algorithm, ChapConfig};
use crate::login::keys::Offer;
use crate::login::{LoggedIn, LoginConfig, LoginFailure};
use crate::name::Portal;
use crate::net::Net;
use crate::session::{SessionConfig, TASKS_IN_FLIGHT_MAX};
use blockdev::path::Isid;
use blockdev::{Instant, Pool, Rt};
use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// Most redirects of one login.
const HOPS_MAX: u32 = 3;

/// What an initiator proves itself with. Cloning shares it: whoever keeps a clone may replace the content, which is
/// what later logins use.
pub type Credentials = Rc<RefCell<Option<ChapConfig>>>;

/// What sessions of one initiator share.
#[derive(Clone)]
pub struct Initiator {
    /// Clock, timers, tasks and chance.
    pub rt: Rt,
    /// The network.
    pub net: Rc<dyn Net>,
    /// Payload memory.
    pub pool: Pool,
    /// Our iSCSI name.
    pub name: String,
    /// Credentials, if the targets want any.
    pub chap: Credentials,
    /// Operational keys to propose, digests among them.
    pub offer: Offer,
    /// Ping after so long a silence; `None` = never.
    pub ping_interval: Option<Duration>,
    /// A ping may take so long.
    pub ping_timeout: Duration,
    /// Most commands of a session sent and unanswered at a time; the rest waits inside.
    pub tasks_in_flight_max: usize,
}

/// Where a session goes.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Portal.
    pub portal: Portal,
    /// Local address to connect from.
    pub source: Option<IpAddr>,
    /// Target name; `None` = discovery.
    pub target: Option<String>,
    /// ISID.
    pub isid: Isid,
}

/// A session and how it came about.
pub struct Established {
    /// Its handle.
    pub client: Client,
    /// What was negotiated.
    pub login: LoggedIn,
    /// The portal it is really connected to, after redirects.
    pub portal: Portal,
}

impl Initiator {
    /// An initiator with the default offer and no credentials, pinging after 5 s of silence.
    pub fn new(rt: Rt, net: Rc<dyn Net>, pool: Pool, name: &str) -> Initiator {
        Initiator {
            rt,
            net,
            pool,
            name: name.to_owned(),
            chap: Credentials::default(),
            offer: Offer::default(),
            ping_interval: Some(Duration::from_secs(5)),
            ping_timeout: Duration::from_secs(5),
            tasks_in_flight_max: TASKS_IN_FLIGHT_MAX,
        }
    }

    /// The ISID of a session of this initiator, by the rule of [`crate::isid`].
    pub fn isid(
        &self,
        target: &str,
        portal: Portal,
        source: Option<IpAddr>,
        role: Role,
        shard: u32,
        lun: Option<u64>,
    ) -> Isid {
        if blockdev::mutation::off("iscsi.fixed-isid") {
            return isid::random(self.rt.random());
        }
        let initiator = &self.name;
        isid::derive(&IsidSource {
            initiator,
            target,
            portal,
            source,
            role,
            shard,
            lun,
        })
    }

    /// Connects and logs in by `deadline`.
    ///
    /// # Errors
    /// [`ConnectError::Connect`] if nothing answered in time, else as [`Client::connect`].
    pub async fn establish(
        &self,
        to: &Destination,
        deadline: Instant,
    ) -> Result<Established, ConnectError> {
        let unanswered = |_| ConnectError::Connect("no answer in time".to_owned());
        self.rt
            .by(deadline, self.follow(to))
            .await
            .map_err(unanswered)?
    }

    async fn follow(&self, to: &Destination) -> Result<Established, ConnectError> {
        let mut portal = to.portal;
        let mut hops = 0;
        let mut chap = self.chap.borrow().clone();
        loop {
            let config = SessionConfig {
                ping_interval: self.ping_interval,
                ping_timeout: self.ping_timeout,
                tasks_in_flight_max: self.tasks_in_flight_max,
                ..SessionConfig::new(self.login_config(to, chap.clone()))
            };
            let way = (portal, to.source);
            match Client::connect(&self.rt, &*self.net, &self.pool, way, config).await {
                Ok((client, login)) => {
                    return Ok(Established {
                        client,
                        login,
                        portal,
                    })
                }
                Err(ConnectError::Login(LoginFailure::Redirect { address, permanent })) => {
                    hops += 1;
                    let next = address.parse().ok().filter(|_| hops <= HOPS_MAX);
                    let Some(next) = next else {
                        let failure = LoginFailure::Redirect { address, permanent };
                        return Err(failure.into());
                    };
                    if permanent {
                        tracing::warn!(%portal, to = %next, "target moved permanently: the configured portal is stale");
                    } else {
                        tracing::info!(%portal, to = %next, "target moved temporarily");
                    }
                    portal = next;
                }
                Err(ConnectError::Login(LoginFailure::Status {
                    class: 2,
                    detail: 0 | 1,
                    chap: Some(Algorithm::Sha256),
                })) if chap.is_some() => {
                    tracing::warn!(%portal, "CHAP with SHA-256 refused (tgt takes its number for SHA-1): once more without it");
                    chap = chap.map(|chap| chap.without_sha256());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn login_config(&self, to: &Destination, chap: Option<ChapConfig>) -> LoginConfig {
        let mut entropy = [0; 4];
        entropy.fill_with(|| self.rt.random());
        LoginConfig {
            initiator_name: self.name.clone(),
            target_name: to.target.clone(),
            isid: to.isid,
            chap,
            offer: self.offer.clone(),
            entropy,
            first_cmd_sn: self.rt.random() as u32,
        }
    }
}
