//! What nodes and servers send one another, what pods ask: DNS, membership, copies of a store, snapshots.

use crate::run;
use bytes::Bytes;
use membership::{
    NodeId,
    seal::{Keys, Opener, Sealer},
    wire::Message,
};
use std::sync::LazyLock;
use store::{copy::Batch, snapshot::Reader};

#[test]
fn dns() {
    // kubernetes.default.svc.cluster.local, A, with EDNS; and an answer to it with a compressed name.
    const QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x0akubernetes\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";
    const ANSWER: &[u8] =
        b"\x12\x34\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x1e\x00\x04\x0a\x60\x00\x01";
    run(|choices| {
        let bytes = &choices.near(&[QUERY, ANSWER]);
        let _ = dns::server::parse(bytes).map(drop);
        let _ = (dns::wire::question(bytes), dns::wire::answers(QUERY, bytes), dns::wire::answers(bytes, ANSWER));
        if let Some(ttls) = dns::wire::ttls(bytes) {
            assert!(ttls.iter().all(|(at, _)| at + 4 <= bytes.len()), "a TTL lies behind the end");
        }
    });
}

#[test]
fn datagrams() {
    const KEY: &str = "0000000000000000000000000000000000000000000000000000000000000000";
    static RIGHT: LazyLock<Vec<&'static [u8]>> = LazyLock::new(|| {
        let plain = Message::Ping { token: 9, epoch: 3, known: None }.encode();
        let keys = Keys::parse(KEY).expect("keys");
        let sealed = Sealer::new(&keys, NodeId(1), 1).and_then(|mut sealer| sealer.seal(NodeId(2), &plain)).expect("a packet");
        vec![&*plain.leak(), &*sealed.leak()]
    });
    run(|choices| {
        let bytes = &choices.near(&RIGHT);
        if let Ok(message) = Message::decode(bytes) {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
        let opened = Opener::new(Keys::parse(KEY).expect("keys"), NodeId(2)).open(bytes, 1);
        assert!(opened.is_err() || bytes == RIGHT[1], "a packet that was changed is taken");
    });
}

#[test]
fn copies() {
    run(|choices| {
        let (whole, mut bytes) = (choices.flip(), choices.near(&[b"", &[0; 64]]));
        if whole {
            // With the right sum, so that what is behind it is read.
            let sum = crc32fast::hash(&bytes);
            bytes.extend(sum.to_le_bytes());
        }
        let _ = Batch::decode(&Bytes::from(bytes)).map(drop);
    });
}

#[test]
fn snapshots() {
    run(|choices| {
        let bytes = &choices.near(&[b"regent-snapshot\n"]);
        let Ok(reader) = Reader::new(bytes.as_slice()) else { return };
        let Ok(mut content) = reader.content(None) else { return };
        while let Ok(Some(_)) = content.next_item() {}
    });
}
