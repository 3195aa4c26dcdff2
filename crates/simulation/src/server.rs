//! A server: an API server (simulated, see [`crate::api`]), and beside it the controllers that endpoints and nodes hang on, under
//! leader election, as they are.

use crate::{
    sabotage::Sabotage,
    way::{Process, Way},
    world::{World, node_name},
};
use client::{
    Informers,
    election::{ElectionConfig, lead},
    events::Recorder,
};
use controllers::{Context, Options, list};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// The controllers that run.
const CONTROLLERS: [&str; 2] = ["endpointslice-controller", "node-lifecycle-controller"];
/// How long a sabotaged leader works on after it has lost its lease.
const WORKS_ON: Duration = Duration::from_secs(30);

/// Work that is noted as long as it goes on, however it ends.
struct Work(World, usize, u64);

impl Work {
    fn begin(world: &World, host: usize, number: u64) -> Work {
        let mut state = world.lock();
        // A host without power does nothing, whoever it is.
        let others: Vec<(usize, u64)> = state.leaders.iter().filter(|(other, _)| state.hosts[*other].is_on).copied().collect();
        if !others.is_empty() {
            state.fail(format!("node-{host} leads while {others:?} does"));
        }
        state.leaders.push((host, number));
        drop(state);
        world.tell(|| format!("node-{host} leads"));
        Work(world.clone(), host, number)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let (host, number) = (self.1, self.2);
        self.0.lock().leaders.retain(|leader| *leader != (host, number));
    }
}

/// Starts the server process of a host that has power.
pub fn start(world: &World, host: usize) {
    if host >= world.shape.servers {
        return;
    }
    let Some((process, stop)) = world.start_process(host, true) else { return };
    tokio::spawn(async move {
        tokio::select! {
            biased;
            // Killed, not asked to stop.
            () = stop.cancelled() => {}
            () = control(process) => {}
        }
    });
}

async fn control(process: Process) {
    let (world, host, number) = (process.world.clone(), process.host, process.number);
    let client = Way::start(&process).client();
    let identity = |number: u64| format!("{}_{number}", node_name(host));
    let config = ElectionConfig {
        clock: world.clock(host),
        predecessor: number.checked_sub(1).map(identity),
        ..ElectionConfig::new("kube-controller-manager", identity(number))
    };
    let views = world.lock().hosts[host].views.subscribe();
    let options = Options { membership: (world.sabotage != Some(Sabotage::Membership)).then_some(views), ..Options::default() };
    let work = |stop: CancellationToken| {
        let context = Context {
            informers: Informers::new(client.clone()),
            client: client.clone(),
            recorder: Recorder::with_clock(client.clone(), "kube-controller-manager", "", world.clock(host)),
            clock: world.clock(host),
            options: Arc::new(options.clone()),
        };
        let named: Vec<String> = CONTROLLERS.iter().map(|name| (*name).to_owned()).collect();
        let entries = list::select(&named).unwrap_or_default();
        let controllers = entries.iter().map(|entry| (entry.new)(&context)).collect();
        let world = world.clone();
        async move {
            let work = Work::begin(&world, host, number);
            let held = if world.sabotage == Some(Sabotage::Lease) { Some(Outlives(Some(work))) } else { None };
            client::controller::run_controllers(controllers, stop).await;
            drop(held);
        }
    };
    // It ends with the process.
    let _ = lead(client.clone(), config, CancellationToken::new(), work).await;
}

/// Work that goes on after its future was dropped.
struct Outlives(Option<Work>);

impl Drop for Outlives {
    fn drop(&mut self) {
        let work = self.0.take();
        tokio::spawn(async move {
            sleep(WORKS_ON).await;
            drop(work);
        });
    }
}
