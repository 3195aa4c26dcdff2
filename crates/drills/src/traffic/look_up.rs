//! A name's address from the cluster DNS: one question, sent again when no answer comes, as a resolver does.

use crate::limits::{LOOK_UP_RETRY_AFTER, LOOK_UPS_MAX};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tokio::{net::UdpSocket, time::timeout};

const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;

/// The address, and how many questions it took; at once if `host` is an address. Or why there is none.
pub async fn address(host: &str, dns: SocketAddr) -> Result<(IpAddr, u8), (String, u8)> {
    if let Ok(address) = host.parse() {
        return Ok((address, 1));
    }
    let mut last = String::new();
    for attempt in 1..=LOOK_UPS_MAX {
        match timeout(LOOK_UP_RETRY_AFTER, ask(host, dns, attempt)).await {
            Ok(Ok(Ok(address))) => return Ok((address, attempt)),
            // An answer that says no is an answer: asking again would not change it.
            Ok(Ok(Err(answer))) => return Err((answer, attempt)),
            Ok(Err(error)) => {
                last = format!("look-up: {}", error.kind());
                tokio::time::sleep(LOOK_UP_RETRY_AFTER).await;
            }
            Err(_) => last = "look-up: no answer in time".to_owned(),
        }
    }
    Err((last, LOOK_UPS_MAX))
}

async fn ask(host: &str, dns: SocketAddr, attempt: u8) -> std::io::Result<Result<IpAddr, String>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(dns).await?;
    // The port differs from look-up to look-up, so the number need not be random.
    let id = socket.local_addr()?.port() ^ u16::from(attempt);
    socket.send(&question(id, host)).await?;
    let mut buffer = [0; 512];
    loop {
        let read = socket.recv(&mut buffer).await?;
        if let Some(answer) = answer(id, &buffer[..read]) {
            return Ok(answer);
        }
    }
}

fn question(id: u16, host: &str) -> Vec<u8> {
    let mut packet = Vec::with_capacity(64);
    // Recursion desired, one question.
    for word in [id, 0x0100, 1, 0, 0, 0] {
        packet.extend(word.to_be_bytes());
    }
    for label in host.trim_end_matches('.').split('.') {
        packet.push(u8::try_from(label.len().min(63)).unwrap_or(63));
        packet.extend(label.bytes().take(63));
    }
    packet.push(0);
    packet.extend(TYPE_A.to_be_bytes());
    packet.extend(CLASS_IN.to_be_bytes());
    packet
}

/// The first address of an answer, or what it says instead; `None` if it answers another question.
fn answer(id: u16, packet: &[u8]) -> Option<Result<IpAddr, String>> {
    let word = |at: usize| packet.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    if word(0)? != id {
        return None;
    }
    match packet.get(3)? & 0x0f {
        0 => {}
        2 => return Some(Err("look-up: SERVFAIL".into())),
        3 => return Some(Err("look-up: NXDOMAIN".into())),
        5 => return Some(Err("look-up: REFUSED".into())),
        code => return Some(Err(format!("look-up: code {code}"))),
    }
    let mut at = 12;
    for _ in 0..word(4)? {
        at = skip_name(packet, at)? + 4;
    }
    for _ in 0..word(6)? {
        at = skip_name(packet, at)?;
        let length = usize::from(word(at + 8)?);
        if word(at)? == TYPE_A && length == 4 {
            let bytes: [u8; 4] = packet.get(at + 10..at + 14)?.try_into().ok()?;
            return Some(Ok(Ipv4Addr::from(bytes).into()));
        }
        at += 10 + length;
    }
    Some(Err("look-up: no address".into()))
}

fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(id: u16, code: u8, address: Option<[u8; 4]>) -> Vec<u8> {
        let mut packet = question(id, "web.drill.svc.cluster.local");
        packet[2] = 0x84;
        packet[3] = code;
        packet[7] = u8::from(address.is_some());
        if let Some(address) = address {
            packet.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
            packet.extend(address);
        }
        packet
    }

    #[test]
    fn an_answer_gives_its_first_address() {
        assert_eq!(answer(7, &reply(7, 0, Some([10, 96, 0, 9]))), Some(Ok("10.96.0.9".parse().unwrap())));
        assert_eq!(answer(7, &reply(7, 3, None)), Some(Err("look-up: NXDOMAIN".into())));
        assert_eq!(answer(7, &reply(7, 0, None)), Some(Err("look-up: no address".into())));
        assert_eq!(answer(7, &reply(8, 0, None)), None);
        assert_eq!(answer(7, &reply(7, 0, Some([1, 2, 3, 4]))[..40]), None);
    }

    #[tokio::test]
    async fn a_lost_question_is_sent_again() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let dns = server.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            let _ = server.recv_from(&mut buffer).await;
            let (_, from) = server.recv_from(&mut buffer).await.unwrap();
            let id = u16::from_be_bytes([buffer[0], buffer[1]]);
            let _ = server.send_to(&reply(id, 0, Some([10, 96, 0, 9])), from).await;
        });
        assert_eq!(address("web.drill.svc.cluster.local", dns).await, Ok(("10.96.0.9".parse().unwrap(), 2)));
        assert_eq!(address("10.1.2.3", dns).await, Ok(("10.1.2.3".parse().unwrap(), 1)));
    }
}
