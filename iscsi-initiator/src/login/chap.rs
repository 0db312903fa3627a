//! CHAP (RFC 7143 §12.1.3, §9.2.1), one-way and mutual, without sockets.
//!
//! The client's side answers the pairs of each login response of the security stage: it offers the
//! algorithms, answers the target's challenge and, if the target must prove itself too, sends a
//! challenge of its own and checks the answer. Whatever is missing, not offered, reflected or
//! wrong ends the login: nothing is negotiated with a peer that failed to authenticate.

use crate::text::{hex_item, parse_binary, parse_number, TextBuilder};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use sha3::Sha3_256;
use std::fmt;
use thiserror::Error;

/// Longest challenge or response, in bytes (RFC 7143 §12.1.3).
const ITEM_BYTES_MAX: usize = 1024;
/// Secrets shorter than this (96 bits) should not be used (RFC 7143 §9.2.1).
pub const SECRET_BYTES_WARN: usize = 12;
/// Longest secret, in bytes.
pub const SECRET_BYTES_MAX: usize = 255;

/// A hash for CHAP, by its registered number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// 5: MD5. Every implementation has it.
    Md5,
    /// 6: SHA-1.
    Sha1,
    /// 7: SHA-256.
    Sha256,
    /// 8: SHA3-256.
    Sha3_256,
}

impl Algorithm {
    /// All, best first: the default offer.
    pub const ALL: [Algorithm; 4] = [
        Algorithm::Sha3_256,
        Algorithm::Sha256,
        Algorithm::Sha1,
        Algorithm::Md5,
    ];

    /// Registered number.
    pub fn number(self) -> u64 {
        match self {
            Algorithm::Md5 => 5,
            Algorithm::Sha1 => 6,
            Algorithm::Sha256 => 7,
            Algorithm::Sha3_256 => 8,
        }
    }

    /// By its name in the config: `md5`, `sha1`, `sha256`, `sha3-256`.
    pub fn from_name(name: &str) -> Option<Algorithm> {
        match name {
            "md5" => Some(Algorithm::Md5),
            "sha1" => Some(Algorithm::Sha1),
            "sha256" => Some(Algorithm::Sha256),
            "sha3-256" => Some(Algorithm::Sha3_256),
            _ => None,
        }
    }

    /// H(id ‖ secret ‖ challenge).
    pub fn response(self, id: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
        fn hash<D: Digest>(parts: [&[u8]; 3]) -> Vec<u8> {
            let mut hash = D::new();
            parts.iter().for_each(|part| hash.update(part));
            hash.finalize().to_vec()
        }
        let parts = [&[id][..], &secret.0, challenge];
        match self {
            Algorithm::Md5 => hash::<Md5>(parts),
            Algorithm::Sha1 => hash::<Sha1>(parts),
            Algorithm::Sha256 => hash::<Sha256>(parts),
            Algorithm::Sha3_256 => hash::<Sha3_256>(parts),
        }
    }
}

/// A shared secret. Its `Debug` form shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes 1–255 bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Secret, ChapError> {
        let bytes = bytes.into();
        if bytes.is_empty() || bytes.len() > SECRET_BYTES_MAX {
            return Err(ChapError::SecretLength(bytes.len()));
        }
        Ok(Secret(bytes))
    }

    /// Shorter than RFC 7143 §9.2.1 wants: worth a warning.
    pub fn is_short(&self) -> bool {
        self.0.len() < SECRET_BYTES_WARN
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Credentials.
#[derive(Clone, Debug)]
pub struct ChapConfig {
    user: String,
    secret: Secret,
    target: Option<(String, Secret)>,
    algorithms: Vec<Algorithm>,
}

impl ChapConfig {
    /// `target` are the credentials that the target must prove (mutual CHAP); an empty user name
    /// there admits any. MD5 is added to the offer if it is not in it (RFC 7143 §12.1.3).
    ///
    /// Equal secrets both ways are refused: either side could then answer with the other's hash.
    /// Short ones are warned of.
    pub fn new(
        user: &str,
        secret: Secret,
        target: Option<(String, Secret)>,
        algorithms: &[Algorithm],
    ) -> Result<ChapConfig, ChapError> {
        if target.as_ref().is_some_and(|(_, theirs)| *theirs == secret) {
            return Err(ChapError::EqualSecrets);
        }
        let mut algorithms = algorithms.to_vec();
        if !algorithms.contains(&Algorithm::Md5) {
            algorithms.push(Algorithm::Md5);
        }
        let config = ChapConfig {
            user: user.to_owned(),
            secret,
            target,
            algorithms,
        };
        for whose in config.short_secrets() {
            tracing::warn!(
                whose,
                "CHAP secret of less than {SECRET_BYTES_WARN} bytes can be guessed (RFC 7143 section 9.2.1)"
            );
        }
        Ok(config)
    }

    /// Whose secrets are shorter than RFC 7143 §9.2.1 wants: `initiator`, `target`.
    pub fn short_secrets(&self) -> Vec<&'static str> {
        let own = self.secret.is_short().then_some("initiator");
        let target = self.target.as_ref();
        let target = target.and_then(|(_, secret)| secret.is_short().then_some("target"));
        own.into_iter().chain(target).collect()
    }

    /// The same without SHA-256: tgt takes its number 7 for SHA-1.
    pub fn without_sha256(&self) -> ChapConfig {
        let mut other = self.clone();
        other
            .algorithms
            .retain(|&algorithm| algorithm != Algorithm::Sha256);
        other
    }

    /// Whether the target must prove itself.
    pub fn is_mutual(&self) -> bool {
        self.target.is_some()
    }
}

/// Why authentication failed. Nothing of a secret is in it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChapError {
    /// A secret of 0 or more than 255 bytes.
    #[error("CHAP secret of {0} bytes; 1 to 255 are allowed")]
    SecretLength(usize),
    /// The same secret both ways.
    #[error("initiator and target must not share one CHAP secret")]
    EqualSecrets,
    /// The target chose a method or algorithm that was not offered.
    #[error("target chose {0}, which was not offered")]
    NotOffered(String),
    /// A key is missing or malformed.
    #[error("{0} is missing or malformed in the target's CHAP answer")]
    Bad(&'static str),
    /// The target sent our own challenge or our own answer back.
    #[error("target reflects the CHAP exchange")]
    Reflected,
    /// The target did not prove itself.
    #[error("target failed to authenticate itself")]
    Impostor,
    /// The target goes on before the exchange is complete.
    #[error("target skipped CHAP")]
    Skipped,
}

/// Our side of one exchange.
#[derive(Debug)]
pub(super) struct ChapClient {
    config: ChapConfig,
    own_id: u8,
    own_challenge: Vec<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    MethodOffered,
    AlgorithmsOffered,
    Answered { algorithm: Algorithm },
    Authenticated,
}

/// What to send next.
pub(super) struct ChapStep {
    pub(super) text: TextBuilder,
    pub(super) is_last: bool,
}

impl ChapClient {
    /// `entropy` must be fresh for each connection.
    pub(super) fn new(config: ChapConfig, entropy: [u64; 4]) -> ChapClient {
        let bytes: Vec<u8> = entropy.iter().flat_map(|word| word.to_be_bytes()).collect();
        let own_id = bytes[0];
        let own_challenge = bytes[1..].to_vec();
        ChapClient {
            config,
            own_id,
            own_challenge,
            state: State::MethodOffered,
        }
    }

    /// The algorithm whose answer was sent.
    pub(super) fn chosen(&self) -> Option<Algorithm> {
        match self.state {
            State::Answered { algorithm } => Some(algorithm),
            _ => None,
        }
    }

    /// Takes the pairs of one complete response of the security stage.
    pub(super) fn step(&mut self, pairs: &[(&str, &str)]) -> Result<ChapStep, ChapError> {
        let value = |key: &'static str| {
            pairs
                .iter()
                .find(|(k, _)| *k == key)
                .map(|(_, v)| *v)
                .ok_or(ChapError::Bad(key))
        };
        let mut text = TextBuilder::default();
        match self.state {
            State::MethodOffered => {
                match value("AuthMethod").map_err(|_| ChapError::Skipped)? {
                    "CHAP" => {}
                    other => return Err(ChapError::NotOffered(format!("AuthMethod={other:.32}"))),
                }
                let numbers: Vec<String> = self
                    .config
                    .algorithms
                    .iter()
                    .map(|a| a.number().to_string())
                    .collect();
                text.push("CHAP_A", &numbers.join(","));
                self.state = State::AlgorithmsOffered;
                Ok(ChapStep {
                    text,
                    is_last: false,
                })
            }
            State::AlgorithmsOffered => {
                let algorithm = self.chosen_of(value("CHAP_A")?)?;
                let (id, challenge) = challenge(value("CHAP_I")?, value("CHAP_C")?)?;
                if challenge == self.own_challenge {
                    return Err(ChapError::Reflected);
                }
                let answer = algorithm.response(id, &self.config.secret, &challenge);
                text.push("CHAP_N", &self.config.user);
                text.push("CHAP_R", &hex_item(&answer));
                if self.config.is_mutual() {
                    text.push("CHAP_I", &self.own_id.to_string());
                    text.push("CHAP_C", &hex_item(&self.own_challenge));
                }
                self.state = State::Answered { algorithm };
                Ok(ChapStep {
                    text,
                    is_last: true,
                })
            }
            State::Answered { algorithm } => {
                if let Some((user, secret)) = &self.config.target {
                    let name = value("CHAP_N").map_err(|_| ChapError::Impostor)?;
                    let proof = value("CHAP_R").map_err(|_| ChapError::Impostor)?;
                    let proof =
                        parse_binary(proof, ITEM_BYTES_MAX).ok_or(ChapError::Bad("CHAP_R"))?;
                    let own =
                        algorithm.response(self.own_id, &self.config.secret, &self.own_challenge);
                    if equal(&proof, &own) {
                        return Err(ChapError::Reflected);
                    }
                    let wanted = algorithm.response(self.own_id, secret, &self.own_challenge);
                    if !equal(&proof, &wanted) || (!user.is_empty() && user != name) {
                        return Err(ChapError::Impostor);
                    }
                }
                self.state = State::Authenticated;
                Ok(ChapStep {
                    text,
                    is_last: true,
                })
            }
            State::Authenticated => Ok(ChapStep {
                text,
                is_last: true,
            }),
        }
    }

    /// Whether the security stage may be left.
    pub(super) fn is_authenticated(&self) -> bool {
        matches!(self.state, State::Authenticated)
    }

    fn chosen_of(&self, text: &str) -> Result<Algorithm, ChapError> {
        let number = parse_number(text).ok_or(ChapError::Bad("CHAP_A"))?;
        let mut offered = self.config.algorithms.iter();
        offered
            .find(|algorithm| algorithm.number() == number)
            .copied()
            .ok_or_else(|| ChapError::NotOffered(format!("CHAP_A={number}")))
    }
}

fn challenge(id: &str, challenge: &str) -> Result<(u8, Vec<u8>), ChapError> {
    let id = parse_number(id)
        .and_then(|id| u8::try_from(id).ok())
        .ok_or(ChapError::Bad("CHAP_I"))?;
    let challenge = parse_binary(challenge, ITEM_BYTES_MAX).ok_or(ChapError::Bad("CHAP_C"))?;
    Ok((id, challenge))
}

/// Compares without telling by its time where they differ.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text).expect("secret")
    }

    fn client(target: Option<&str>) -> ChapClient {
        let target = target.map(|text| ("target".to_owned(), secret(text)));
        let config = ChapConfig::new("user", secret("initiator-secret"), target, &Algorithm::ALL);
        ChapClient::new(config.expect("config"), [1, 2, 3, 4])
    }

    fn sent(step: ChapStep) -> Vec<(String, String)> {
        let bytes = step.text.into_bytes();
        let pairs = crate::text::parse_pairs(&bytes).expect("pairs");
        pairs
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    }

    /// Values computed with an independent implementation (python hashlib).
    #[test]
    fn chap_each_algorithm_vector() {
        let of = |a: Algorithm| hex_item(&a.response(7, &secret("secret"), b"challenge"));
        assert_eq!(of(Algorithm::Md5), "0x35524f3f6d24a5b27d3a2ff77c7c5060");
        assert_eq!(
            of(Algorithm::Sha1),
            "0x680d9c1d423b422bd5d1b011642fe34e01602a6c"
        );
        assert_eq!(
            of(Algorithm::Sha256),
            "0xe90c73de581a9d0ca40cb82bbeeaa22c97a79c0e02044a798b98e2a3be20e172"
        );
        assert_eq!(
            of(Algorithm::Sha3_256),
            "0xdc087731d8f9a953cadfb7a7e35b14f543e0a0d9470debfe418717693ea13115"
        );
    }

    fn exchange(client: &mut ChapClient, challenge: &str) -> Vec<(String, String)> {
        let step = client.step(&[("AuthMethod", "CHAP")]).expect("method");
        assert!(!step.is_last);
        assert_eq!(sent(step), [("CHAP_A".to_owned(), "8,7,6,5".to_owned())]);
        let step = client.step(&[("CHAP_A", "5"), ("CHAP_I", "9"), ("CHAP_C", challenge)]);
        sent(step.expect("challenge"))
    }

    /// Proves to be the target with this secret, in hex or base64.
    fn prove(with: &str, encode: impl Fn(&[u8]) -> String) -> Result<bool, ChapError> {
        let mut client = client(Some("target-secret"));
        let answer = exchange(&mut client, "0x010203");
        let id: u8 = answer[2].1.parse().expect("id");
        let own = parse_binary(&answer[3].1, 1024).expect("challenge");
        let proof = encode(&Algorithm::Md5.response(id, &secret(with), &own));
        client
            .step(&[("CHAP_N", "target"), ("CHAP_R", &proof)])
            .map(|step| step.is_last)
    }

    fn base64_item(bytes: &[u8]) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let digits = bytes.chunks(3).flat_map(|three| {
            let mut word = [0; 3];
            word[..three.len()].copy_from_slice(three);
            let word = u32::from_be_bytes([0, word[0], word[1], word[2]]);
            (0..4).map(move |at| match at <= three.len() {
                true => char::from(DIGITS[(word >> (18 - 6 * at)) as usize & 63]),
                false => '=',
            })
        });
        "0b".chars().chain(digits).collect()
    }

    #[test]
    fn chap_hex_and_base64_both_ways() {
        for challenge in ["0x010203", "0bAQID"] {
            let mut client = client(None);
            let answer = exchange(&mut client, challenge);
            let wanted = Algorithm::Md5.response(9, &secret("initiator-secret"), &[1, 2, 3]);
            assert_eq!(answer[1], ("CHAP_R".to_owned(), hex_item(&wanted)));
            assert!(client.step(&[]).expect("done").is_last && client.is_authenticated());
        }
        assert_eq!(prove("target-secret", hex_item), Ok(true));
        assert_eq!(prove("target-secret", base64_item), Ok(true));
    }

    #[test]
    fn chap_wrong_target_response_closes() {
        assert_eq!(prove("wrong", hex_item), Err(ChapError::Impostor));
        assert_eq!(
            prove("target-secret", |_| "0x00".to_owned()),
            Err(ChapError::Impostor)
        );
        assert_eq!(
            prove("target-secret", |_| "nonsense".to_owned()),
            Err(ChapError::Bad("CHAP_R"))
        );
    }

    #[test]
    fn chap_reflected_response_closes() {
        assert_eq!(
            prove("initiator-secret", hex_item),
            Err(ChapError::Reflected)
        );
    }

    #[test]
    fn chap_short_secret_warned() {
        let short = |own: &str, target: Option<&str>| {
            let target = target.map(|text| ("t".to_owned(), secret(text)));
            let config = ChapConfig::new("u", secret(own), target, &[]);
            config.expect("allowed all the same").short_secrets()
        };
        assert_eq!(short("elevenbytes", Some("x")), ["initiator", "target"]);
        assert!(short("twelve bytes", Some("twelve bytes too")).is_empty());
        assert_eq!(short("1", None), ["initiator"]);
    }

    #[test]
    fn chap_missing_target_response_closes() {
        let mut client = client(Some("target-secret"));
        exchange(&mut client, "0x010203");
        assert_eq!(client.step(&[]).err(), Some(ChapError::Impostor));
    }

    #[test]
    fn chap_reflected_challenge_closes() {
        let mut client = client(None);
        client.step(&[("AuthMethod", "CHAP")]).expect("method");
        let own = hex_item(&client.own_challenge);
        let step = client.step(&[("CHAP_A", "5"), ("CHAP_I", "9"), ("CHAP_C", &own)]);
        assert_eq!(step.err(), Some(ChapError::Reflected));
    }

    #[test]
    fn chap_algorithm_not_offered_closes() {
        let mut offered = client(None);
        offered.step(&[("AuthMethod", "CHAP")]).expect("method");
        let step = offered.step(&[("CHAP_A", "4"), ("CHAP_I", "9"), ("CHAP_C", "0x01")]);
        assert!(matches!(step.err(), Some(ChapError::NotOffered(_))));
        assert!(matches!(
            client(None).step(&[("AuthMethod", "None")]).err(),
            Some(ChapError::NotOffered(_))
        ));
        assert_eq!(client(None).step(&[]).err(), Some(ChapError::Skipped));
    }

    #[test]
    fn chap_1024_byte_limit() {
        let mut long = client(None);
        long.step(&[("AuthMethod", "CHAP")]).expect("method");
        let item = hex_item(&[7; 1025]);
        let step = long.step(&[("CHAP_A", "5"), ("CHAP_I", "9"), ("CHAP_C", &item)]);
        assert_eq!(step.err(), Some(ChapError::Bad("CHAP_C")));
    }

    #[test]
    fn chap_same_secret_both_ways_refused_in_config() {
        let same = ChapConfig::new("u", secret("a"), Some(("t".into(), secret("a"))), &[]);
        assert_eq!(same.err(), Some(ChapError::EqualSecrets));
        assert!(secret("elevenbytes").is_short() && !secret("twelve bytes").is_short());
        assert!(Secret::new("").is_err() && Secret::new(vec![1; 256]).is_err());
    }

    #[test]
    fn chap_secret_never_logged() {
        let config = ChapConfig::new("user", secret("hush-hush"), None, &[]).expect("config");
        assert!(!format!("{config:?}").contains("hush"));
        let client = ChapClient::new(config, [1, 2, 3, 4]);
        assert!(!format!("{client:?}").contains("hush"));
    }

    #[test]
    fn chap_md5_in_the_default_list() {
        for offer in [&Algorithm::ALL[..], &[], &[Algorithm::Sha256]] {
            let config = ChapConfig::new("user", secret("a secret"), None, offer);
            let config = config.expect("config");
            assert!(config.algorithms.contains(&Algorithm::Md5));
            let without = config.without_sha256().algorithms;
            assert!(without.contains(&Algorithm::Md5) && !without.contains(&Algorithm::Sha256));
        }
    }
}
