//! The little of a DNS message that must be read to pass it on as it is: its id, its question, and where its TTLs are.
//!
//! Messages of others are forwarded byte for byte, so that no record type is unknown here. Everything is checked against
//! the message's length: a damaged message gives `None`, never a panic.

use std::ops::Range;

const HEADER_BYTES: usize = 12;
const OPT: u16 = 41;

/// The message's id.
pub fn id(message: &[u8]) -> Option<u16> {
    u16_at(message, 0)
}

/// Gives the message another id.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(bytes) = message.get_mut(..2) {
        bytes.copy_from_slice(&id.to_be_bytes());
    }
}

/// Whether it is a response.
pub fn is_response(message: &[u8]) -> bool {
    message.get(2).is_some_and(|byte| byte & 0x80 != 0)
}

/// Whether it was cut to fit a datagram.
pub fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|byte| byte & 0x02 != 0)
}

/// The response code, without the extension of EDNS.
pub fn code(message: &[u8]) -> Option<u8> {
    message.get(3).map(|byte| byte & 0x0f)
}

/// Where the one question is (name, type and class); `None` if there is not exactly one.
pub fn question(message: &[u8]) -> Option<Range<usize>> {
    if u16_at(message, 4)? != 1 {
        return None;
    }
    let end = skip_name(message, HEADER_BYTES)?.checked_add(4)?;
    (end <= message.len()).then_some(HEADER_BYTES..end)
}

/// Whether a response answers a query: the same question, whatever the case of its letters.
pub fn answers(query: &[u8], response: &[u8]) -> bool {
    let (Some(asked), Some(answered)) = (question(query), question(response)) else { return false };
    is_response(response) && query[asked].eq_ignore_ascii_case(&response[answered])
}

/// The TTLs of all records but OPT's, with where they are.
pub fn ttls(message: &[u8]) -> Option<Vec<(usize, u32)>> {
    let records = u32::from(u16_at(message, 6)?) + u32::from(u16_at(message, 8)?) + u32::from(u16_at(message, 10)?);
    let mut at = question(message)?.end;
    let mut found = Vec::new();
    for _ in 0..records {
        at = skip_name(message, at)?;
        let kind = u16_at(message, at)?;
        let ttl = message.get(at + 4..at + 8)?;
        if kind != OPT {
            found.push((at + 4, u32::from_be_bytes(ttl.try_into().ok()?)));
        }
        at = at.checked_add(10)?.checked_add(usize::from(u16_at(message, at + 8)?))?;
    }
    (at <= message.len()).then_some(found)
}

/// Writes a TTL where [`ttls`] has found one.
pub fn set_ttl(message: &mut [u8], at: usize, ttl: u32) {
    if let Some(bytes) = message.get_mut(at..at + 4) {
        bytes.copy_from_slice(&ttl.to_be_bytes());
    }
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// Where the name that begins here ends: pointers are not followed, they end a name.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length if length & 0xc0 == 0 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, OpCode, Query};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    #[test]
    fn a_message_is_read_and_changed_in_place() {
        let name = Name::from_ascii("example.org.").unwrap();
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(Query::query(name.clone(), RecordType::A));
        for (ttl, last) in [(300, 1), (60, 2)] {
            message.add_answer(Record::from_rdata(name.clone(), ttl, RData::A(A::new(192, 0, 2, last))));
        }
        let mut bytes = message.to_vec().unwrap();
        assert_eq!(id(&bytes), Some(7));
        assert!(is_response(&bytes) && !is_truncated(&bytes));
        let found = ttls(&bytes).unwrap();
        assert_eq!(found.iter().map(|(_, ttl)| *ttl).collect::<Vec<_>>(), [300, 60]);
        for (at, _) in found {
            set_ttl(&mut bytes, at, 5);
        }
        set_id(&mut bytes, 9);
        let read = Message::from_vec(&bytes).unwrap();
        assert_eq!((read.metadata.id, read.answers[0].ttl, read.answers[1].ttl), (9, 5, 5));
    }

    #[test]
    fn damage_is_none_and_never_a_panic() {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii("a.example.org.").unwrap(), RecordType::A));
        let bytes = message.to_vec().unwrap();
        for cut in 0..bytes.len() {
            assert_eq!(question(&bytes[..cut]), None);
            let _ = ttls(&bytes[..cut]);
        }
        let mut many = bytes.clone();
        many[7] = 200;
        assert_eq!(ttls(&many), None);
    }
}
