//! The hands of a host's member: packets over the simulated links instead of UDP, and its ticks.

use crate::{
    way::Process,
    world::{World, member_address},
};
use membership::{Handle, Member, NodeId, Requests, detector::Way, limits::TICK_MS};
use parking_lot::Mutex;
use rand::Rng;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Packets that a paused process' socket holds; more are dropped.
const SOCKET_PACKETS: usize = 300;

/// What `membership::start` is on a machine.
pub fn start(process: &Process, config: &membership::Config, shutdown: CancellationToken) -> Handle {
    let (world, host) = (process.world.clone(), process.host);
    let mut state = world.lock();
    let seed = state.rng.random();
    let member = Member::new(&config.node_name, config.address, config.epoch, seed);
    let (handle, requests) = Handle::of(&member);
    let member = Arc::new(Mutex::new(member));
    state.hosts[host].member = Some(member.clone());
    // A node that knew nothing of the cluster becomes a member only when a server tells it.
    state.hosts[host].jolt(Instant::now());
    drop(state);
    tokio::spawn(tick(process.clone(), member, requests, shutdown));
    handle
}

async fn tick(process: Process, member: Arc<Mutex<Member>>, mut requests: Requests, shutdown: CancellationToken) {
    let (world, host) = (&process.world, process.host);
    let mut told = 0;
    while !shutdown.is_cancelled() && process.is_alive() {
        let lag = world.lock().rng.random_range(0..=world.shape.lag_ms);
        sleep(Duration::from_millis(TICK_MS + lag)).await;
        process.gate().await;
        drain(world, host);
        let (now, unix_ms) = {
            let state = world.lock();
            (state.now_ms(), state.unix_ms(host))
        };
        {
            let mut member = member.lock();
            if !requests.obey_all(&mut member, now, unix_ms) {
                return;
            }
            member.tick(now, unix_ms);
        }
        send(world, host, &member);
        requests.show(&member.lock());
        let known = member.lock().known(&crate::world::node_name(host)).map_or(0, |(_, version)| version);
        if known != told {
            told = known;
            world.lock().note(&format!("node-{host} says {known}"));
        }
    }
}

/// Takes in what came while the process was paused.
pub fn drain(world: &World, host: usize) {
    let waiting = std::mem::take(&mut world.lock().hosts[host].inbox);
    for (from, bytes) in waiting {
        receive(world, host, from, &bytes);
    }
}

fn receive(world: &World, host: usize, from: usize, bytes: &[u8]) {
    let (member, now) = {
        let state = world.lock();
        (state.hosts[host].member.clone(), state.now_ms())
    };
    if let Some(member) = member {
        member.lock().receive(now, NodeId::of(&crate::world::node_name(from)), bytes);
        send(world, host, &member);
    }
}

fn send(world: &World, from: usize, member: &Mutex<Member>) {
    let outputs = member.lock().take_outputs();
    for (address, output) in outputs {
        let Some(to) = (0..world.shape.hosts).find(|host| member_address(*host) == address) else { continue };
        let bytes = output.message.encode();
        let delay = {
            let mut state = world.lock();
            state.packets += 1;
            if bytes.len() > membership::limits::PACKET_BYTES_MAX - 48 {
                state.fail(format!("node-{from} sends a packet of {} bytes", bytes.len()));
            }
            if world.loses(&mut state) {
                continue;
            }
            world.delay(&mut state)
        };
        let (world, way) = (world.clone(), output.way);
        tokio::spawn(async move {
            sleep(delay).await;
            arrive(&world, from, to, bytes, way);
        });
    }
}

fn arrive(world: &World, from: usize, to: usize, bytes: Vec<u8>, way: Way) {
    let mut state = world.lock();
    if !state.passes(from, to) {
        return;
    }
    let is_paused = state.is_paused(to);
    let refuses = !state.hosts[to].agent.runs || state.hosts[to].member.is_none();
    let comes_back = state.passes(to, from);
    if refuses {
        let (now, sender) = (state.now_ms(), state.hosts[from].member.clone());
        drop(state);
        if way == Way::Watch
            && comes_back
            && let Some(sender) = sender
        {
            sender.lock().refused(now, NodeId::of(&crate::world::node_name(to)));
        }
        return;
    }
    if is_paused {
        let inbox = &mut state.hosts[to].inbox;
        if inbox.len() < SOCKET_PACKETS {
            inbox.push((from, bytes));
        }
        return;
    }
    drop(state);
    receive(world, to, from, &bytes);
}
