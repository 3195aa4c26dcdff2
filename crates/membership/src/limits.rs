//! The named limits and periods of membership, with what happens at each. Times are of heard time ([`crate::clock`]).
//!
//! The sum to keep in mind: a death is noticed after at most [`WATCH_EVERY_MS`] + [`WATCH_SUSPECT_AFTER_MS`], believed
//! [`SUSPECT_TO_DOWN_MS`] later, and known everywhere a round of gossip after that: within two and a half seconds.

/// How often the core looks at its timers.
pub const TICK_MS: u64 = 50;
/// Of a longer gap between two looks only this much is counted: in the rest nothing could be heard.
pub const HEARD_STEP_MAX_MS: u64 = 250;
/// After such a gap this node takes itself for slow, and is twice as patient for this long.
pub const SLOW_FOR_MS: u64 = 5_000;

/// How often the first neighbour is pinged; the second half as often.
pub const WATCH_EVERY_MS: u64 = 300;
/// A neighbour that has not answered for this long is pinged every [`WATCH_HURRY_MS`].
pub const WATCH_LATE_MS: u64 = 200;
/// See [`WATCH_LATE_MS`].
pub const WATCH_HURRY_MS: u64 = 100;
/// A neighbour that has answered none of [`WATCH_PINGS_MIN`] pings for this long is suspected.
pub const WATCH_SUSPECT_AFTER_MS: u64 = 550;
/// See [`WATCH_SUSPECT_AFTER_MS`].
pub const WATCH_PINGS_MIN: u32 = 4;

/// How often the member is pinged that was not for the longest time: whether packets pass between it and this node is for this node
/// to find out, whatever others say of it.
pub const DIRECT_EVERY_MS: u64 = 500;
/// Packets to a member that others vouch for have been lost for this long: it is pinged only every [`CUT_PING_EVERY_MS`].
pub const CUT_LONG_MS: u64 = 2_000;
/// See [`CUT_LONG_MS`].
pub const CUT_PING_EVERY_MS: u64 = 500;
/// Of who is cut off so many pings have been lost: of twenty packets one may be, either way, and nobody is to be cut off by that.
pub const CUT_PINGS_MIN: u32 = 6;
/// Who is cut off stays so until it answers, or nobody has vouched for it for this long: several asks may be lost.
pub const CUT_VOUCH_HOLDS_MS: u64 = 4_000;

/// How often a suspect is pinged, by everyone who has heard of the suspicion.
pub const SUSPECT_PING_EVERY_MS: u64 = 150;
/// A suspect that has answered none of [`SUSPECT_PINGS_MIN`] pings, and for whom nobody vouches, is down after this long.
pub const SUSPECT_TO_DOWN_MS: u64 = 900;
/// See [`SUSPECT_TO_DOWN_MS`].
pub const SUSPECT_PINGS_MIN: u32 = 4;
/// The same for a member that others have found to be down.
pub const HEARSAY_TO_DOWN_MS: u64 = 500;
/// See [`HEARSAY_TO_DOWN_MS`].
pub const HEARSAY_PINGS_MIN: u32 = 3;
/// The same for a member that nobody has told anything of since this process began.
pub const UNKNOWN_TO_DOWN_MS: u64 = 2_500;
/// See [`UNKNOWN_TO_DOWN_MS`].
pub const UNKNOWN_PINGS_MIN: u32 = 6;
/// How often an unknown member is pinged.
pub const UNKNOWN_PING_EVERY_MS: u64 = 300;
/// How often a member is pinged that is down, to notice its return.
pub const DOWN_PING_EVERY_MS: u64 = 1_000;
/// How often a host is pinged whose agent is down.
pub const AGENT_DOWN_PING_EVERY_MS: u64 = 500;
/// A host says that its agent is down; when it has not said so for this long, the host is down too.
pub const REFUSAL_HOLDS_MS: u64 = 1_600;

/// From when on others are asked about a member that does not answer.
pub const ASK_AFTER_MS: u64 = 250;
/// How often they are asked.
pub const ASK_EVERY_MS: u64 = 300;
/// How often they are asked while they vouch.
pub const ASK_AGAIN_MS: u64 = 1_000;
/// How many are asked.
pub const ASK_PEERS: usize = 3;
/// A sign of life this young is vouched for without another ping.
pub const VOUCH_FRESH_MS: u64 = 300;
/// For how long a vouch, and a direct answer of a member that is suspected, count.
pub const EVIDENCE_HOLDS_MS: u64 = 1_500;
/// Who asked is remembered for this long.
pub const WAITER_FOR_MS: u64 = 1_000;
/// Askers remembered per member at most; more are not answered.
pub const WAITERS_MAX: usize = 64;

/// From when on in a suspicion everybody is asked for an answer, to know on which side of a partition this node is.
pub const ROLL_CALL_AFTER_MS: u64 = 250;
/// How often.
pub const ROLL_CALL_EVERY_MS: u64 = 400;
/// A roll call must have lasted this long before it can condemn anyone.
pub const ROLL_CALL_MIN_MS: u64 = 200;
/// After so long a roll call without a majority this node was cut off, and not merely waiting for answers.
pub const CUT_OFF_AFTER_MS: u64 = 2_000;
/// For how long a node that is back from such a cut condemns nobody: long enough for every living one to be called up and heard.
pub const BACK_FOR_MS: u64 = 1_500;
/// For how long after its return the API may not know yet who was lost meanwhile: Kubernetes' grace period of 40 s, and its look.
pub const API_CATCHES_UP_MS: u64 = 60_000;
/// A death that stood this long is agreed: the dead no longer count when a majority is counted.
pub const AGREED_AFTER_MS: u64 = 5_000;

/// SWIM's own probe of a random member.
pub const PROBE_EVERY_MS: u64 = 1_000;
/// SWIM's wait before it probes through others.
pub const PROBE_RTT_MS: u64 = 400;
/// How often news are spread, while there are any.
pub const GOSSIP_EVERY_MS: u64 = 200;
/// How often a news is told on by each member.
pub const TRANSMISSIONS_MAX: u8 = 10;
/// How long SWIM remembers who is down. Longer than any news about it is on its way.
pub const REMEMBER_DOWN_MS: u64 = 30_000;
/// How often the whole list of members is asked from a random one.
pub const ANNOUNCE_EVERY_MS: u64 = 30_000;

/// Bytes of a packet at most, so that none is ever fragmented.
pub const PACKET_BYTES_MAX: usize = 1_400;
/// Bytes of SWIM in a packet at most.
pub const SWIM_BYTES_MAX: usize = 1_200;
/// Bytes of records in a packet at most.
pub const DELTA_BYTES_MAX: usize = 1_150;
/// Packets of records sent at once to one member at most; the next digest brings the rest.
pub const DELTAS_AT_ONCE_MAX: usize = 64;
/// Records of one node at most: Kubernetes' 110 pods, with room for those that are ending.
pub const RECORDS_PER_NODE_MAX: usize = 512;
/// Removed records that are remembered at most; whoever has not heard of an older one gets everything anew.
pub const TOMBSTONES_MAX: usize = 256;
/// Bytes of an endpoint's UID at most.
pub const UID_BYTES_MAX: usize = 64;
/// Owners named in one digest at most; a bigger cluster's digests name a part each.
pub const DIGEST_OWNERS_MAX: usize = 48;
/// Members named as down in one digest at most; the next ones name others.
pub const DIGEST_DOWN_MAX: usize = 12;
/// How often a random member is asked what it knows.
pub const DIGEST_EVERY_MS: u64 = 1_000;
/// Own changes are gathered for this long before they are told.
pub const PUSH_GATHER_MS: u64 = 50;
/// The news of an own change is told again after these, as a packet may be lost.
pub const PUSH_AGAIN_MS: [u64; 2] = [250, 700];

/// Members of a cluster at most; names beyond are not watched.
pub const MEMBERS_MAX: usize = 1_000;
/// Packets taken from the socket before the timers are looked at again.
pub const PACKETS_AT_ONCE_MAX: usize = 512;
/// Packets of a sender that may overtake each other by this many; older ones are dropped as repeated.
pub const REPLAY_WINDOW: u64 = 1_024;
/// A sender whose newest session has been silent for this long may come back with an older one (its disk and clock were lost).
pub const SESSION_SILENT_MS: u64 = 60_000;
/// Sockets to watched members are closed when unused for this long.
pub const WATCH_SOCKET_IDLE_MS: u64 = 20_000;
/// Commands waiting for the core at most; whoever sends more waits.
pub const COMMANDS_MAX: usize = 1_024;
/// Answers of watched members waiting for the core at most; more are dropped, as the network would.
pub const ANSWERS_MAX: usize = 1_024;

/// Bytes of one view on the local socket at most; a reader drops what is longer.
pub const VIEW_BYTES_MAX: usize = 16 << 20;
/// Readers of the local socket at most; more are refused.
pub const READERS_MAX: usize = 16;
/// Views are written to the local socket at most this often; a reader gets the newest.
pub const VIEW_EVERY_MS: u64 = 50;
/// A reader that cannot reach the socket tries again after this long.
pub const READER_RETRY_MS: u64 = 500;
/// A reader whose publisher is gone for this long no longer believes what it said of endpoints' readiness.
pub const PUBLISHER_GONE_MS: u64 = 10_000;
