//! Every command in `docs/operations.md` is run.
//!
//! The page is cut at its `##` headings. Each section that has a line `<!-- test: COMMAND -->` gets a machine of its own: private
//! namespaces (mounts, network, processes), an empty `/var/lib/regent`, the address 10.0.0.11. There the section's blocks marked `sh` run in
//! their order, in one shell that stops at the first failure. `systemctl start|stop regent` starts and stops COMMAND (a `regent server`,
//! which runs without the agent); it has been started before the first block. A section without such a line must have no `sh` block.
//! `<!-- test: none -->` is a machine on which nothing runs.
//!
//! Needs root, like everything that makes namespaces. What does not end in time fails; with the namespaces all processes end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// How long one section may take, in seconds.
const SECTION_S: u32 = 240;

struct Section {
    title: String,
    /// What `systemctl start regent` runs; `None`: nothing.
    server: Option<String>,
    commands: String,
}

/// The sections of a page that have commands.
fn sections(page: &str) -> Vec<Section> {
    let mut found = Vec::new();
    for text in page.split("\n## ").skip(1) {
        let (title, body) = text.split_once('\n').unwrap_or((text, ""));
        let fixture = body.lines().find_map(|line| line.strip_prefix("<!-- test: ")?.strip_suffix(" -->"));
        let mut commands = String::new();
        let mut inside = false;
        for line in body.lines() {
            match line {
                "```sh" => inside = true,
                "```" => inside = false,
                line if inside => commands += &format!("{line}\n"),
                _ => {}
            }
        }
        assert!(commands.is_empty() || fixture.is_some(), "the section {title:?} has commands, but does not say on what they are tested");
        if !commands.is_empty() {
            let server = fixture.filter(|fixture| *fixture != "none").map(String::from);
            found.push(Section { title: title.into(), server, commands });
        }
    }
    found
}

/// A `systemctl` that knows one unit.
fn systemctl(server: Option<&str>) -> String {
    let server = server.unwrap_or("false").replacen("regent server", "regent server --disable agent", 1);
    format!(
        r#"#!/bin/bash
set -e
case "$1" in
start|restart)
    [ "$1" = start ] || "$0" stop regent
    setsid {server} >> /run/regent.log 2>&1 < /dev/null &
    echo $! > /run/regent.pid
    for i in $(seq 600); do
        kubectl --kubeconfig /var/lib/regent/admin.kubeconfig get --raw /readyz > /dev/null 2>&1 && exit 0
        kill -0 "$(cat /run/regent.pid)" 2> /dev/null || break
        sleep 0.1
    done
    echo "the server did not become ready:" >&2
    tail -n 20 /run/regent.log >&2
    exit 1 ;;
stop)
    pid=$(cat /run/regent.pid)
    kill "$pid"
    for i in $(seq 300); do kill -0 "$pid" 2> /dev/null || exit 0; sleep 0.1; done
    echo "the server did not stop" >&2
    exit 1 ;;
*)  ;;
esac
"#
    )
}

fn write_script(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn run(section: &Section) -> Result<(), String> {
    let directory = tempfile::tempdir().unwrap();
    let programs = directory.path().join("bin");
    fs::create_dir(&programs).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_regent"), programs.join("regent")).unwrap();
    write_script(&programs.join("systemctl"), &systemctl(section.server.as_deref()));
    let start = if section.server.is_some() { "systemctl start regent" } else { "" };
    let script = format!(
        r#"set -euo pipefail
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /var/lib/regent
mount -t tmpfs -o mode=700 tmpfs /var/lib/regent
ip link set lo up
ip address add 10.0.0.11/24 dev lo
ip route add default dev lo src 10.0.0.11
export PATH={programs}:$PATH HOME={home} REGENT_LOG=info
{start}
cd {home}
trap 'echo "--- failed: $BASH_COMMAND" >&2; tail -n 15 /run/regent.log >&2 || true' ERR
set -x
{commands}"#,
        programs = programs.display(),
        home = directory.path().display(),
        // The page's own files lie in root's home.
        commands = section.commands.replace("/root/", &format!("{}/", directory.path().display())),
    );
    let path: PathBuf = directory.path().join("section.sh");
    write_script(&path, &script);
    let output = Command::new("timeout")
        .args(["--signal=KILL", &SECTION_S.to_string()])
        .args(["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc", "bash"])
        .arg(&path)
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Err(format!("{}: {}\n{}{}", section.title, output.status, text(&output.stdout), text(&output.stderr)))
}

#[test]
fn every_command_of_the_page_works() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md")).unwrap();
    let wanted = std::env::var("REGENT_SECTION").unwrap_or_default();
    let sections: Vec<Section> = sections(&page).into_iter().filter(|section| section.title.contains(&wanted)).collect();
    assert!(!sections.is_empty(), "there is no section with commands");
    let failures: Vec<String> = sections.iter().filter_map(|section| run(section).err()).collect();
    assert!(failures.is_empty(), "{} of {} sections failed:\n{}", failures.len(), sections.len(), failures.join("\n\n"));
}

#[test]
fn sections_are_found() {
    let page = "# T\n\n## A\n\n<!-- test: regent server --x -->\n\n```sh\none\n```\n```text\nnot\n```\n```sh\ntwo\n```\n\n## B\n\nnothing\n";
    let found = sections(page);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].server.as_deref(), found[0].commands.as_str()), (Some("regent server --x"), "one\ntwo\n"));
}
