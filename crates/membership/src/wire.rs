//! What members say to each other, before it is sealed. Postcard; a packet holds one message.

use crate::{
    identity::{Identity, NodeId},
    limits,
    records::Delta,
};
use serde::{Deserialize, Serialize};

/// One message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// A packet of SWIM.
    Swim(Vec<u8>),
    /// Are you there? Say this number again.
    Ping {
        /// Fresh, so that an answer cannot be an old one.
        token: u32,
        /// Who asks.
        epoch: u64,
        /// What the asker believes of whom it asks, so that it can object.
        known: Option<Known>,
    },
    /// Yes.
    Pong {
        /// As in the ping.
        token: u32,
        /// Who answers.
        epoch: u64,
    },
    /// I cannot reach this one. Can you?
    Ask {
        /// Of whom is asked.
        about: NodeId,
    },
    /// I have just heard it.
    Vouch {
        /// Of whom was asked.
        about: NodeId,
        /// Its epoch.
        epoch: u64,
    },
    /// What the sender knows: owner, its epoch, version.
    Digest {
        /// See there.
        known: Vec<(NodeId, u64, u64)>,
        /// Whether all owners that the sender knows are named.
        whole: bool,
        /// Who is down, as the sender found out itself, with the epoch.
        down: Vec<(NodeId, u64)>,
        /// Whether the sender would like to have the receiver's digest when that knows less.
        answer: bool,
    },
    /// Records of one owner.
    Delta(Delta),
}

/// What is believed of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Its epoch.
    pub epoch: u64,
    /// Its incarnation within the epoch.
    pub incarnation: u16,
    /// And that it is: alive, suspect or down.
    pub state: Belief,
}

/// SWIM's three states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Belief {
    /// Alive.
    Alive,
    /// Suspected to be down.
    Suspect,
    /// Down.
    Down,
}

impl From<&foca::Member<Identity>> for Known {
    fn from(member: &foca::Member<Identity>) -> Known {
        let state = match member.state() {
            foca::State::Alive => Belief::Alive,
            foca::State::Suspect => Belief::Suspect,
            foca::State::Down => Belief::Down,
        };
        Known { epoch: member.id().epoch, incarnation: member.incarnation(), state }
    }
}

/// Why a message is not one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// It is not in the form above; the sender may be of another version.
    #[error("not a message of this version")]
    Malformed,
}

impl Message {
    /// The message as bytes.
    pub fn encode(&self) -> Vec<u8> {
        // Postcard fails on none of these types: they have known lengths.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// The message of these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Message, Error> {
        if bytes.len() > limits::PACKET_BYTES_MAX {
            return Err(Error::Malformed);
        }
        match postcard::take_from_bytes(bytes) {
            Ok((message, [])) => Ok(message),
            _ => Err(Error::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_survives_the_way() {
        let known = Known { epoch: 7, incarnation: 1, state: Belief::Suspect };
        let message = Message::Ping { token: 9, epoch: 3, known: Some(known) };
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
            let _ = Message::decode(&bytes);
        }
    }
}
