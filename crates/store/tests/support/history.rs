//! Judges of what clients and watchers saw. Pure: histories in, a verdict out.
//!
//! [`linearizable`] asks whether there is an order of all operations on one key, each taking effect at one moment between its call and its
//! return, that explains every answer (the search of Wing and Gong, with Lowe's memory of what was tried). Written values are unique, so
//! a value names the write that made it. [`watched`] asks whether a stream of events is one that a store may show.

use std::collections::{HashMap, HashSet};
use store::{Event, Revision};

/// Names the write that made it.
pub type Value = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Read,
    Create(Value),
    /// Writes the first where the second stands.
    Update(Value, Value),
    Delete(Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What a read found.
    Found(Option<Value>),
    Done,
    /// The condition did not hold; this stood there.
    Refused(Option<Value>),
    /// It may have been done, may yet be, or never.
    Unknown,
}

/// One operation on one key. What surely was not done is no operation.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub called: u64,
    pub returned: u64,
    pub action: Action,
    pub answer: Answer,
}

/// The state after the operation, if it can take place in `state` with the answer that it got.
fn step(state: Option<Value>, operation: &Operation) -> Option<Option<Value>> {
    let (needs, gives) = match operation.action {
        Action::Read => return matches!(operation.answer, Answer::Found(found) if found == state).then_some(state),
        Action::Create(value) => (None, Some(value)),
        Action::Update(value, expected) => (Some(expected), Some(value)),
        Action::Delete(expected) => (Some(expected), None),
    };
    match operation.answer {
        Answer::Done | Answer::Unknown => (state == needs).then_some(gives),
        Answer::Refused(standing) => (state == standing && state != needs).then_some(state),
        Answer::Found(_) => None,
    }
}

/// Every value that an operation proves to have been there, and when at the latest.
fn observed(operations: &[Operation]) -> HashMap<Value, u64> {
    let mut seen: HashMap<Value, u64> = HashMap::new();
    for operation in operations {
        let answered = match operation.answer {
            Answer::Found(value) | Answer::Refused(value) => value,
            _ => None,
        };
        let replaced = match (operation.action, operation.answer) {
            (Action::Update(_, expected) | Action::Delete(expected), Answer::Done) => Some(expected),
            _ => None,
        };
        for value in answered.into_iter().chain(replaced) {
            let latest = seen.entry(value).or_insert(u64::MAX);
            *latest = (*latest).min(operation.returned);
        }
    }
    seen
}

/// Whether the history of one key, which begins absent, is linearizable. An error names where the search got stuck.
pub fn linearizable(history: &[Operation]) -> Result<(), String> {
    let seen = observed(history);
    // An unknown write whose value was never seen changed nothing that anyone saw: whoever came after would have had to name it.
    // One that was seen was done, before it was seen. Of an unknown delete nothing is known.
    let mut operations: Vec<(Operation, bool)> = Vec::new();
    for operation in history {
        match (operation.answer, operation.action) {
            (Answer::Unknown, Action::Create(value) | Action::Update(value, _)) => {
                if let Some(latest) = seen.get(&value) {
                    operations.push((Operation { answer: Answer::Done, returned: *latest, ..*operation }, true));
                }
            }
            (Answer::Unknown, _) => operations.push((Operation { returned: u64::MAX, ..*operation }, false)),
            _ => operations.push((*operation, true)),
        }
    }
    operations.sort_by_key(|(operation, _)| operation.called);
    let mandatory = operations.iter().filter(|(_, mandatory)| *mandatory).count();

    struct Frame {
        state: Option<Value>,
        candidates: Vec<usize>,
        chosen: Option<usize>,
    }
    let mut taken = vec![0u64; operations.len() / 64 + 1];
    let is_taken = |taken: &[u64], i: usize| taken[i / 64] >> (i % 64) & 1 == 1;
    // What may come next: whatever was called before the first return of those that are left.
    let candidates = |taken: &[u64]| {
        let mut first_return = u64::MAX;
        let mut open = Vec::new();
        for (i, (operation, mandatory)) in operations.iter().enumerate() {
            if operation.called > first_return {
                break;
            }
            if is_taken(taken, i) {
                continue;
            }
            if *mandatory {
                first_return = first_return.min(operation.returned);
            }
            open.push(i);
        }
        open.retain(|i| operations[*i].0.called <= first_return);
        open
    };
    let mut tried: HashSet<(Vec<u64>, Option<Value>)> = HashSet::new();
    let (mut ordered, mut farthest) = (0, (0, Vec::new(), None));
    let mut stack = vec![Frame { state: None, candidates: candidates(&taken), chosen: None }];
    while let Some(frame) = stack.last_mut() {
        if ordered == mandatory {
            return Ok(());
        }
        if let Some(i) = frame.chosen.take() {
            taken[i / 64] &= !(1 << (i % 64));
            ordered -= usize::from(operations[i].1);
        }
        let Some(i) = frame.candidates.pop() else {
            stack.pop();
            continue;
        };
        let Some(state) = step(frame.state, &operations[i].0) else { continue };
        taken[i / 64] |= 1 << (i % 64);
        if !tried.insert((taken.clone(), state)) {
            taken[i / 64] &= !(1 << (i % 64));
            continue;
        }
        frame.chosen = Some(i);
        ordered += usize::from(operations[i].1);
        let next = candidates(&taken);
        if ordered > farthest.0 {
            farthest = (ordered, next.clone(), state);
        }
        stack.push(Frame { state, candidates: next, chosen: None });
    }
    let (ordered, open, state) = farthest;
    let open: Vec<_> = open.into_iter().map(|i| operations[i].0).collect();
    Err(format!(
        "no order explains the answers: after {ordered} of {mandatory} operations the key held {state:?}, and none of these can follow: {open:#?}"
    ))
}

/// Whether a stream of events from an empty prefix is one that a store may show: each revision once, in order, each event following from
/// the state before it.
pub fn watched(events: &[Event]) -> Result<(), String> {
    let mut last = Revision(0);
    let mut state: HashMap<&str, (Revision, Revision)> = HashMap::new();
    for event in events {
        if event.revision <= last {
            return Err(format!("revision {} came after {last}", event.revision));
        }
        last = event.revision;
        let before = state.get(event.key.as_str()).copied();
        if event.previous != before.map(|(changed, _)| changed) {
            return Err(format!("before revision {last}, {} was changed at {before:?}, but the event says {:?}", event.key, event.previous));
        }
        if event.created != before.map_or(event.revision, |(_, created)| created) {
            return Err(format!("the event at revision {last} has the wrong birth {}", event.created));
        }
        match &event.value {
            Some(_) => {
                state.insert(&event.key, (event.revision, event.created));
            }
            None if before.is_none() => return Err(format!("at revision {last} {} was deleted, but was not there", event.key)),
            None => {
                state.remove(event.key.as_str());
            }
        }
    }
    Ok(())
}
