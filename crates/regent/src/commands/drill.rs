//! `regent drill`: failures as runnable scenarios, in a sandbox.

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use drills::{
    engine, limits,
    outcome::{Outcome, table},
    report,
    scenario::Scenario,
    scenarios, soak,
    traffic::{self, Target},
};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

#[derive(Args)]
pub struct Drill {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the drills and what each shows.
    List,
    /// Run drills, one after another, and print their verdicts.
    Run(Run),
    /// Run drills in random order, again and again, and print what was measured over all of them.
    Soak(Soak),
    #[command(hide = true)]
    Traffic(Traffic),
}

#[derive(Args)]
struct Run {
    /// Names of drills, or `all`.
    #[arg(required = true)]
    names: Vec<String>,
    /// Write what happens when each part fails, as Markdown.
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    /// Leave the last sandbox up; the next run uses it again.
    #[arg(long)]
    keep: bool,
    /// Break on purpose what each drill checks: every verdict must be FAILED.
    #[arg(long, hide = true)]
    sabotage: bool,
    #[command(flatten)]
    how: How,
}

#[derive(Args)]
struct Soak {
    /// Names of drills [default: all].
    names: Vec<String>,
    /// For how long, as 90s, 30m or 8h; the drill that runs then is the last.
    #[arg(long, default_value = "1h", value_parser = super::election::duration)]
    duration: Duration,
    /// What the order of the faults follows from [default: one of its own, which is printed].
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    how: How,
}

/// What every run of drills is told.
#[derive(Args)]
struct How {
    /// Write an HTML page with a timeline of each drill, and JSON beside it.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Where the sandbox lives while the drills run.
    #[arg(long, default_value = "/var/lib/regent-drills")]
    dir: PathBuf,
    /// The directory of images for the sandbox's registry, made by `make images`.
    #[arg(long, default_value = "target/images")]
    images: PathBuf,
    /// Where the logs of requests stay [default: beside the report, or /var/log/regent-drills].
    #[arg(long, value_name = "DIRECTORY")]
    logs: Option<PathBuf>,
    /// A flag in place of a topology's own, as COMPONENT=FLAG; can be repeated.
    #[arg(long = "set", value_name = "COMPONENT=FLAG")]
    set: Vec<String>,
    /// Requests per second on each way, from all nodes together.
    #[arg(long, default_value_t = limits::RATE_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=5000))]
    rate: u32,
}

#[derive(Args)]
struct Traffic {
    #[arg(long)]
    source: String,
    #[arg(long, default_value_t = 0)]
    boot: u32,
    #[arg(long, default_value_t = limits::RATE_DEFAULT)]
    rate: u32,
    #[arg(long = "target", value_name = "WAY=HOST:PORT")]
    targets: Vec<Target>,
    #[arg(long)]
    dns: SocketAddr,
    /// A kubeconfig with which the API is called too.
    #[arg(long)]
    api: Option<PathBuf>,
}

pub fn run(arguments: Drill) -> Result<()> {
    match arguments.action {
        Action::List => list(),
        Action::Run(run) => drill(run)?,
        Action::Soak(soak) => self::soak(soak)?,
        Action::Traffic(traffic) => send(traffic)?,
    }
    Ok(())
}

fn list() {
    for scenario in scenarios::ALL {
        println!("{}\n    {}\n    {}\n", scenario.name, scenario.shows, scenario.topology.describe(&[]));
    }
}

fn send(arguments: Traffic) -> Result<()> {
    pki::tls::install_provider();
    // One thread: it shares its cores with what it measures.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let Traffic { source, boot, rate, targets, dns, api } = arguments;
    let config = traffic::Config { source, boot, targets, rate, kept_rate: limits::KEPT_RATE, dns, api };
    Ok(runtime.block_on(traffic::run(config))?)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Scenario>> {
    if names.iter().any(|name| name == "all") {
        return Ok(scenarios::ALL.to_vec());
    }
    let named = |name: &String| scenarios::named(name).with_context(|| format!("there is no drill {name}; `regent drill list` names them"));
    names.iter().map(named).collect()
}

impl How {
    fn config(&self, keep: bool, sabotage: bool) -> Result<engine::Config> {
        for flag in &self.set {
            if !flag.split_once('=').is_some_and(|(_, flag)| flag.starts_with("--")) {
                bail!("--set {flag}: expected COMPONENT=FLAG, as controller-manager=--node-monitor-grace-period=50s");
            }
        }
        let logs = match (&self.logs, &self.report) {
            (Some(logs), _) => logs.clone(),
            (None, Some(report)) => report.with_extension(""),
            (None, None) => PathBuf::from("/var/log/regent-drills"),
        };
        Ok(engine::Config {
            directory: std::path::absolute(&self.dir)?,
            images: std::path::absolute(&self.images)?,
            logs: std::path::absolute(&logs)?,
            keep,
            set: self.set.clone(),
            sabotage,
            rate: self.rate,
        })
    }
}

/// Runs rounds of groups of drills, until there is none or it is enough.
fn play(
    config: engine::Config,
    mut rounds: impl FnMut(u64) -> Option<Vec<Vec<&'static Scenario>>>,
    enough: impl Fn() -> bool,
) -> Result<Vec<Outcome>> {
    let began = Instant::now();
    let say: drills::stage::Say = Arc::new(move |text: &str| eprintln!("[{:7.1} s] {text}", began.elapsed().as_secs_f64()));
    let mut outcomes = Vec::new();
    let ended = &mut outcomes;
    // Servers that do not answer are what drills are about: only what a drill says is shown.
    crate::runtime::run_logging("error", |shutdown| async move {
        let all = async {
            let mut round = 0;
            while let Some(groups) = rounds(round).filter(|_| !enough()) {
                for group in groups {
                    ended.extend(engine::run(&config, &group, &say, &enough).await?);
                }
                round += 1;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            ran = all => ran,
            () = shutdown.cancelled() => {
                let directory = config.directory.display();
                bail!("interrupted; `regent sandbox --dir {directory} down` takes the sandbox away");
            }
        }
    })?;
    Ok(outcomes)
}

fn drill(arguments: Run) -> Result<()> {
    let drills = chosen(&arguments.names)?;
    let config = arguments.how.config(arguments.keep, arguments.sabotage)?;
    let outcomes = play(config, |round| (round == 0).then(|| vec![drills.clone()]), || false)?;
    println!("{}", table(&outcomes));
    write_reports(&outcomes, arguments.how.report.as_deref(), arguments.document.as_deref())?;
    verdict(&outcomes)
}

fn soak(arguments: Soak) -> Result<()> {
    let drills = if arguments.names.is_empty() { scenarios::ALL.to_vec() } else { chosen(&arguments.names)? };
    let seed = arguments.seed.unwrap_or_else(rand::random);
    eprintln!("the order follows from --seed {seed}");
    let config = arguments.how.config(false, false)?;
    let began = Instant::now();
    let outcomes = play(config, |round| Some(soak::round(&drills, seed, round)), || began.elapsed() >= arguments.duration)?;
    println!("{}", soak::table(&outcomes));
    write_reports(&outcomes, arguments.how.report.as_deref(), None)?;
    verdict(&outcomes)
}

fn verdict(outcomes: &[Outcome]) -> Result<()> {
    let failed = outcomes.iter().filter(|outcome| !outcome.passed()).count();
    if failed > 0 {
        bail!("{failed} of {} drills failed", outcomes.len());
    }
    println!("{} drills passed.", outcomes.len());
    Ok(())
}

fn write_reports(outcomes: &[Outcome], html: Option<&Path>, document: Option<&Path>) -> Result<()> {
    let write = |file: &Path, text: String| {
        if let Some(directory) = file.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
        println!("written: {}", file.display());
        anyhow::Ok(())
    };
    if let Some(file) = html {
        write(file, report::html(outcomes))?;
        write(&file.with_extension("json"), serde_json::to_string(outcomes)?)?;
    }
    if let Some(file) = document {
        let pictured = outcomes.iter().find(|outcome| outcome.name == report::PICTURED);
        let picture = pictured.map(|_| file.with_extension("svg"));
        if let (Some(outcome), Some(picture)) = (pictured, &picture) {
            write(picture, report::picture(outcome))?;
        }
        let beside = picture.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        write(file, report::document(outcomes, beside.as_deref()))?;
    }
    Ok(())
}
