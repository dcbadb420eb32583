//! Draws paths as pictures: a sequence diagram in plain text of a path that the model found.
//!
//! `docs/model.md` has a marker at the place of each picture. [`refresh`] redraws them, and a test
//! fails if the page shows another path than the one that the model finds.

use std::fmt::Write as _;

use onceward::policy::Guarantee::AtMostOnce;
use onceward::record::PhaseKind;
use stateright::{Checker, HasDiscoveries, Model, Path};

use crate::holder::Holder;
use crate::invariants::ONE_EFFECT;
use crate::store::{At, Op, Row};
use crate::{Action, Bounds, Delivery, Protocol, State, Variant};

const NOTHING: Bounds = Bounds { faults: 0, deaths: 0, cuts: 0, declines: 0, streams: 0, expiry: false };

/// Returns the pictures of `docs/model.md`: the marker of each, and the broken protocol in which a
/// key takes effect twice.
pub fn told() -> [(&'static str, Protocol); 3] {
    let broken = |prints: &[u8], bounds, variant| Protocol::new(prints, AtMostOnce, bounds).broken(variant);
    let lost = Bounds { faults: 1, cuts: 1, ..NOTHING };
    [
        ("run again after the lease", broken(&[0, 0], NOTHING, Variant::RunsAgainAfterTheLease)),
        ("a TTL on the claim", broken(&[0, 0], NOTHING, Variant::ForgetsClaims)),
        ("a number that restarts", broken(&[0, 0, 0], lost, Variant::NumbersAttempts)),
    ]
}

/// Returns the page with all of its pictures redrawn.
///
/// # Panics
///
/// If the page lacks a marker, or the model finds no path.
pub fn refresh(page: &str) -> String {
    let mut page = page.replace("\r\n", "\n");
    for (name, protocol) in told() {
        let mark = format!("<!-- picture: {name} -->\n```text\n");
        let start = page.find(&mark).unwrap_or_else(|| panic!("the page has no {mark:?}")) + mark.len();
        let end = start + page[start..].find("```").expect("the picture ends");
        page.replace_range(start..end, &picture(&protocol));
    }
    page
}

/// Draws one of the shortest paths on which a broken protocol lets a key take effect twice.
///
/// # Panics
///
/// If there is none.
pub fn picture(protocol: &Protocol) -> String {
    let enough = HasDiscoveries::AnyOf([ONE_EFFECT].into());
    let checker = protocol.clone().checker().finish_when(enough).spawn_bfs().join();
    draw(protocol, &checker.discovery(ONE_EFFECT).expect("it is broken"))
}

const LANE: usize = 16;
const STORE_LANE: usize = 24;

struct Canvas {
    lanes: Vec<usize>,
    text: String,
}

/// Draws a path: each request's gateway, the store and the service, from top to bottom.
pub fn draw(protocol: &Protocol, path: &Path<State, Action>) -> String {
    let requests = protocol.prints.len();
    let mut canvas = Canvas { lanes: (0..=requests).map(|at| 2 + at * LANE).collect(), text: String::new() };
    let store = requests;
    let service = requests + 1;
    canvas.lanes.push(2 + requests * LANE + STORE_LANE);
    canvas.heads();
    let steps = path.clone().into_vec();
    let cast = Cast::new(requests, steps.iter().filter_map(|(_, action)| *action));
    for (before, action) in steps {
        // The model may have continued for a step or two before the check.
        if before.history.effects > 1 {
            break;
        }
        let Some(action) = action else { break };
        let Some(after) = protocol.next_state(&before, action) else { continue };
        let changed = (before.row != after.row).then(|| cast.row(after.row));
        let changed = changed.as_deref().unwrap_or_default();
        match action {
            // Shown by its claim.
            Action::Arrives(_) => {}
            Action::Store(request, delivery) => {
                let at = cast.lane(request);
                let asked = cast.asked(protocol, &before, request);
                match delivery {
                    Delivery::Answered => {
                        canvas.arrow(at, store, &asked, changed);
                        let done = before.row != after.row || before.row.is_some_and(|row| row.attempt == request);
                        let said = if done { "done" } else { "no: taken" };
                        canvas.arrow(store, at, said, "");
                    }
                    Delivery::Lost => canvas.note(at, &format!("{asked}: lost")),
                    Delivery::Late => canvas.note(at, &format!("{asked}: late")),
                    Delivery::Twice => canvas.note(at, "is sent twice"),
                }
            }
            Action::Sends(request) => canvas.arrow(cast.lane(request), service, "request", ""),
            Action::CannotConnect(request) => canvas.note(cast.lane(request), "no connection"),
            Action::Renews(request) => canvas.note(cast.lane(request), "renews"),
            Action::Executes(_) => canvas.note(service, &format!("TAKES EFFECT ({})", after.history.effects)),
            Action::Declines(_) => canvas.note(service, "declines"),
            Action::Answers(request) => canvas.arrow(service, cast.lane(request), "answer", ""),
            Action::Streams(request) => canvas.arrow(service, cast.lane(request), "head of a stream", ""),
            Action::StreamEnds(request) => canvas.note(cast.lane(request), "the stream ends"),
            Action::Cut(request) => canvas.note(cast.lane(request), "is cut off"),
            Action::Dies(request, _) => canvas.note(cast.lane(request), "dies"),
            Action::ArrivesLate(op) => {
                canvas.note(store, &format!("late: {}; {}", cast.meant(op), cast.row(after.row)))
            }
            Action::Ages => canvas.note(store, aged(before.row)),
            Action::Sweeps => canvas.note(store, "the sweep looks"),
            Action::SweepWrites => canvas.note(store, &format!("swept: {}", cast.row(after.row))),
            Action::Forgets => canvas.note(store, "the TTL: free"),
        }
    }
    canvas.text
}

impl Canvas {
    fn heads(&mut self) {
        let last = self.lanes.len() - 1;
        let names = (0..=last).map(|at| match last - at {
            0 => "service".to_owned(),
            1 => "store".to_owned(),
            _ => format!("gateway {}", letter(at)),
        });
        let mut line = String::new();
        for (name, lane) in names.zip(&self.lanes) {
            while line.chars().count() + 2 < *lane {
                line.push(' ');
            }
            line.push_str(&name);
        }
        let _ = writeln!(self.text, "{}", line.trim_end());
    }

    fn lanes(&self) -> Vec<char> {
        let mut line = vec![' '; self.lanes.last().map_or(0, |last| last + 1)];
        for lane in &self.lanes {
            line[*lane] = '│';
        }
        line
    }

    fn note(&mut self, lane: usize, said: &str) {
        let mut line = self.lanes();
        write_at(&mut line, self.lanes[lane] + 2, said);
        self.push(&line);
    }

    /// Draws an arrow. `then` is the text beside its end.
    fn arrow(&mut self, from: usize, to: usize, said: &str, then: &str) {
        let mut line = self.lanes();
        let (start, end) = (self.lanes[from], self.lanes[to]);
        for (at, cell) in line.iter_mut().enumerate().take(start.max(end)).skip(start.min(end) + 1) {
            *cell = if self.lanes.contains(&at) { '┼' } else { '─' };
        }
        match start < end {
            true => {
                line[end - 1] = '▶';
                write_at(&mut line, start + 2, &format!(" {said} "));
            }
            false => {
                line[end + 1] = '◀';
                write_at(&mut line, start - said.chars().count() - 4, &format!(" {said} "));
            }
        }
        write_at(&mut line, end + 2, then);
        self.push(&line);
    }

    fn push(&mut self, line: &[char]) {
        let line: String = line.iter().collect();
        let _ = writeln!(self.text, "{}", line.trim_end());
    }
}

fn write_at(line: &mut Vec<char>, at: usize, said: &str) {
    for (offset, letter) in said.chars().enumerate() {
        if line.len() <= at + offset {
            line.resize(at + offset + 1, ' ');
        }
        line[at + offset] = letter;
    }
}

/// Names of the requests: A, B and C in the order in which they first call the store.
struct Cast(Vec<u8>);

impl Cast {
    fn new(requests: usize, steps: impl Iterator<Item = Action>) -> Self {
        let mut order = Vec::new();
        let asking = steps.filter_map(|action| match action {
            Action::Store(request, _) => Some(request),
            _ => None,
        });
        for request in asking.chain((0..requests).filter_map(|request| u8::try_from(request).ok())) {
            if !order.contains(&request) {
                order.push(request);
            }
        }
        Self(order)
    }

    fn lane(&self, request: u8) -> usize {
        self.0.iter().position(|other| *other == request).unwrap_or_default()
    }

    fn letter(&self, request: u8) -> char {
        letter(self.lane(request))
    }

    fn asked(&self, protocol: &Protocol, state: &State, request: u8) -> String {
        let holder = state.holders[usize::from(request)];
        match (holder, holder.asks(protocol.me(request))) {
            (Holder::Claiming { over: Some(_) }, _) => "takes over".to_owned(),
            (Holder::Renewing { .. } | Holder::Sent { .. }, _) => "renew".to_owned(),
            (_, Some(op)) => self.meant(op),
            (_, None) => String::new(),
        }
    }

    fn meant(&self, op: Op) -> String {
        match op {
            Op::Get => "look".to_owned(),
            Op::Insert(row) | Op::Replace(_, row) => match row.at {
                At::InFlight => "claim",
                At::Completed { .. } => "keep",
                At::Released => "release",
                At::Unknown => "unknown",
                At::Tombstone { .. } => "tombstone",
            }
            .to_owned(),
            Op::Remove(over) if over.stage == PhaseKind::InFlight => {
                format!("release {}", self.letter(over.attempt.0[0]))
            }
            Op::Remove(_) => "forget".to_owned(),
        }
    }

    fn row(&self, row: Option<Row>) -> String {
        let Some(row) = row else { return "free".to_owned() };
        let of = self.letter(row.attempt);
        match row.at {
            At::InFlight => format!("in flight: {of}"),
            At::Completed { .. } => format!("completed: {of}"),
            At::Released => format!("released: {of}"),
            At::Unknown => format!("unknown: {of}"),
            At::Tombstone { .. } => format!("tombstone: {of}"),
        }
    }
}

fn aged(row: Option<Row>) -> &'static str {
    match row.map(|row| row.at) {
        Some(At::InFlight) => "the lease is over",
        Some(At::Completed { .. }) => "retention is over",
        _ => "its time is over",
    }
}

fn letter(at: usize) -> char {
    u8::try_from(at).map_or('?', |at| char::from(b'A' + at))
}
