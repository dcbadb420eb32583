//! Model of the protocol of a keyed request, checked state by state. The guarantees of the design
//! hold for every order of events of clients, holders, the upstream and the store.
//!
//! The model has no rules of its own. Each decision is a call of `onceward::decide`: [`claim`],
//! [`complete`], [`unknown`], [`truncated`], [`release`], [`renew`], [`sweep`] and
//! [`effective_state`], over real [`StoredRecord`]s. This crate adds only the environment: the
//! order of calls, the losses, and the [invariants] that must hold in each state.
//!
//! # What is modelled
//!
//! Covers one record, and several requests that have its key: retries, duplicates, and requests
//! with another fingerprint. A retry is one more request; it may come at any time, at once or after
//! all else is over.
//!
//! - **A holder** is the gateway that has a request: its own process, which may pause between any
//!   two steps for any time, and crash at any step. It claims by an insert or, if it finds a record
//!   that does not bind, by a replace of that version. With the claim it sends the request, or
//!   fails to connect. It may renew first, because its clock says that two thirds of the lease have
//!   passed (it may say so at any time, and be wrong either way). It renews while it waits for the
//!   response. It completes, releases, or abandons the request (a reset, a drain,
//!   `capture_timeout`), and reads the store's response to that. If the store does not respond, it
//!   retries in the background until it does; its client got its response before.
//! - **The upstream** executes a sent request at any later time, also after its holder has
//!   abandoned it or crashed, or never. Or it declines the request by a status that is declared as
//!   released. It may respond with a stream, whose head is stored and which may be truncated.
//! - **The store** applies operations to its one row as its contract says, one after the other. An
//!   operation of a holder is acknowledged; or lost with its acknowledgement; or applied *later*,
//!   at any time, after its caller was told that the outcome is unknown (a lost acknowledgement is
//!   the shortest case of this); or sent twice by the store's driver, so that the second one
//!   arrives at any time. [`Bounds::faults`] bounds their number.
//! - **Leases** expire at any moment after the last write. Retention and tombstones do so too
//!   ([`Bounds::expiry`]).
//! - **The sweep** reads, and writes its decision at any later time, over the version that it read.
//!
//! # What is not modelled
//!
//! - *Waiting duplicates, bodies, HTTP*: a waiter is a retry that comes later.
//! - *Data loss of the store*: a completion that finds no record is rejected here.
//! - *Operators and probes*: only a late response settles an `unknown`.
//! - *Dishonest upstreams*: one that executes and then sends a status that is declared as released
//!   is believed.
//! - *Several records*: ids share nothing in a store but its capacity.
//! - *Time as a number.* A retention, a tombstone and the remains of a release do not expire while
//!   an operation is in progress whose caller got a timeout. In reality an operation may be sent
//!   just before that expiry and arrive just after it. A claim that does so leaves a key `unknown`
//!   of which no byte was sent.

pub mod holder;
pub mod invariants;
pub mod picture;
pub mod store;

use onceward::decide::{self, Sweep};
use onceward::policy::Guarantee;
use onceward::record::{PhaseKind, StoredRecord};
use stateright::{Model, Property};

use crate::holder::{End, Holder, Me, Step, Told, mine};
use crate::invariants::History;
use crate::store::{Answer, At, Compare, Op, Row};

#[cfg(doc)]
use onceward::decide::{claim, complete, effective_state, release, renew, sweep, truncated, unknown};

/// Bounded model of the protocol.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// Fingerprint of each request. Equal ones arrive in order, because nothing distinguishes them
    /// before.
    pub prints: Vec<u8>,
    /// Guarantee of the route for lost holders.
    pub guarantee: Guarantee,
    /// Bounds of the faults.
    pub bounds: Bounds,
    /// Protocol as built, or broken in one place.
    pub variant: Variant,
}

/// Bounds of the faults in one run, and of the rarer events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Store operations that are lost, delayed or duplicated.
    pub faults: u8,
    /// Processes that crash.
    pub deaths: u8,
    /// Requests that are interrupted, abandoned or drained after their first byte, or that cannot
    /// connect before it.
    pub cuts: u8,
    /// Requests that the upstream declines.
    pub declines: u8,
    /// Responses that stream.
    pub streams: u8,
    /// `true` if retention, tombstones and the remains of releases expire.
    pub expiry: bool,
}

/// Protocol as built, or broken in one place: a model that cannot fail proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Protocol as built.
    #[default]
    Built,
    /// The store deletes a claim when its lease expires, as a TTL on an in-flight marker does.
    ForgetsClaims,
    /// The sweep removes a claim that it should mark as unknown.
    SweepsClaims,
    /// The store compares the attempt, but not its phase.
    ComparesAttemptOnly,
    /// A lost holder's request is executed again under `at-most-once`.
    RunsAgainAfterTheLease,
    /// A holder sends although the store did not acknowledge its claim.
    SendsUnclaimed,
    /// A release does not compare the attempt.
    ReleasesBlindly,
    /// Attempts have sequence numbers from the record instead of random ids. A release deletes the
    /// record, so the next attempt gets the first number again.
    NumbersAttempts,
    /// A release does not check for the version that its claim was to replace.
    ForgetsWhatItReplaced,
    /// A request that was interrupted after its first byte is released.
    ReleasesAfterSending,
    /// A completion overwrites any record.
    CompletesBlindly,
    /// The client gets its response before the store has it, and is told that it is stored.
    TellsBeforeKeeping,
    /// Fingerprints are not compared.
    IgnoresFingerprint,
    /// A request that was declined, or not sent, is released although the attempt before it may
    /// have executed.
    ReleasesAfterUnknown,
}

/// State of the whole system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Gateway of each request.
    pub holders: Vec<Holder>,
    /// State of each request at the upstream.
    pub wires: Vec<Wire>,
    /// Row of the store.
    pub row: Option<Row>,
    /// Operations that timed out for their callers, and may still arrive.
    pub late: Vec<Op>,
    /// Write that the sweep has decided on, and not yet sent.
    pub sweep: Option<Op>,
    /// Remaining faults.
    pub left: Bounds,
    /// History that the invariants need.
    pub history: History,
}

/// State of a request at the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    /// No byte was sent.
    Idle,
    /// The request was sent, and has not arrived.
    Sent,
    /// The request took effect.
    Executed,
    /// The request was declined, and had no effect.
    Declined,
}

/// Next event. The number is the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The client sends the request.
    Arrives(u8),
    /// The holder's operation reaches the store, or does not.
    Store(u8, Delivery),
    /// The first byte is sent to the upstream.
    Sends(u8),
    /// The upstream cannot be reached.
    CannotConnect(u8),
    /// The holder renews its claim.
    Renews(u8),
    /// The request takes effect at the upstream.
    Executes(u8),
    /// The upstream declines the request.
    Declines(u8),
    /// The upstream's response reaches the holder.
    Answers(u8),
    /// The head of a stream reaches the holder.
    Streams(u8),
    /// A stream ends completely.
    StreamEnds(u8),
    /// The connection is lost, or the holder abandons the request.
    Cut(u8),
    /// The holder's process crashes; its last store operation may still arrive, or not.
    Dies(u8, Last),
    /// An operation arrives that had timed out for its caller.
    ArrivesLate(Op),
    /// The row ages: a lease, a retention or a tombstone expires.
    Ages,
    /// The sweep reads the row.
    Sweeps,
    /// The sweep writes its decision.
    SweepWrites,
    /// A broken store deletes a claim.
    Forgets,
}

/// Delivery of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The operation is applied and acknowledged.
    Answered,
    /// The operation is lost.
    Lost,
    /// The operation is applied later; its caller gets a timeout.
    Late,
    /// The store's driver sends it again; both may be applied.
    Twice,
}

/// Delivery of the operation that a crashing process had begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// There is none, or it was not sent.
    Unsent,
    /// The operation may still arrive.
    Late,
}

impl Protocol {
    /// Returns the protocol as built.
    pub fn new(prints: &[u8], guarantee: Guarantee, bounds: Bounds) -> Self {
        Self { prints: prints.to_vec(), guarantee, bounds, variant: Variant::Built }
    }

    /// Returns the same protocol, broken in one place.
    pub fn broken(self, variant: Variant) -> Self {
        Self { variant, ..self }
    }

    fn me(&self, request: u8) -> Me {
        let print = self.prints[usize::from(request)];
        Me { request, print, guarantee: self.guarantee, variant: self.variant }
    }

    fn apply(&self, state: &mut State, op: Op) -> Answer {
        let compare = match self.variant {
            Variant::ComparesAttemptOnly => Compare::Attempt,
            Variant::NumbersAttempts => Compare::Number,
            _ => Compare::Version,
        };
        let before = state.row;
        let answer = op.apply(&mut state.row, compare);
        if answer == Answer::Done {
            state.wrote(self, before);
        }
        answer
    }

    fn deliver(&self, state: &mut State, request: u8, delivery: Delivery) -> Option<()> {
        let me = self.me(request);
        let holder = state.holders[usize::from(request)];
        let op = holder.asks(me)?;
        if delivery != Delivery::Answered {
            state.left.faults -= 1;
        }
        if matches!(delivery, Delivery::Late | Delivery::Twice) && op != Op::Get {
            state.late.push(op);
        }
        let next = match delivery {
            Delivery::Twice => holder,
            Delivery::Lost | Delivery::Late => holder.unanswered(me),
            Delivery::Answered => match self.apply(state, op) {
                Answer::Done => holder.done(me),
                Answer::Found(row) => holder.found(me, row.map(|row| state.found(row)).as_ref()),
            },
        };
        state.becomes(request, next);
        Some(())
    }

    /// Ends the attempt of a holder. A renewal may still be in progress.
    fn end(&self, state: &mut State, request: u8, end: End) {
        let me = self.me(request);
        let holder = state.holders[usize::from(request)];
        state.late.extend(holder.asks(me));
        state.becomes(request, holder.end(me, end));
    }

    fn cut(&self, state: &mut State, request: u8) {
        state.left.cuts -= 1;
        match state.holders[usize::from(request)] {
            Holder::Streaming => {
                let over = mine(self.me(request), PhaseKind::Completed);
                let cut = Holder::Ending { end: End::Cut, step: Step::Over(over), told: Some(Told::NotStored) };
                state.becomes(request, cut);
            }
            _ if self.variant == Variant::ReleasesAfterSending => {
                self.end(state, request, End::Released { over: None });
            }
            _ => self.end(state, request, End::Interrupted),
        }
    }

    fn sweep(&self, row: Row, found: &StoredRecord) -> Option<Op> {
        match decide::sweep(found) {
            Sweep::Leave => None,
            Sweep::Write(_) if self.variant == Variant::SweepsClaims && row.at == At::InFlight => {
                Some(Op::Remove(row.version()))
            }
            Sweep::Write(phase) => Some(Op::Replace(row.version(), Row::of(row.attempt, row.print, &phase))),
            Sweep::Forget => Some(Op::Remove(row.version())),
        }
    }

    fn actions_of(&self, state: &State, request: u8, actions: &mut Vec<Action>) {
        let at = usize::from(request);
        let (holder, wire, left) = (state.holders[at], state.wires[at], state.left);
        let asks = holder.asks(self.me(request));
        if let Some(op) = asks {
            actions.push(Action::Store(request, Delivery::Answered));
            if left.faults > 0 {
                actions.push(Action::Store(request, Delivery::Lost));
                if op != Op::Get {
                    actions.push(Action::Store(request, Delivery::Late));
                    actions.push(Action::Store(request, Delivery::Twice));
                }
            }
        }
        match holder {
            Holder::Absent => {
                let alike = |other: &usize| self.prints[*other] == self.prints[at];
                let before = (0..at).rev().find(alike);
                if before.is_none_or(|before| state.holders[before] != Holder::Absent) {
                    actions.push(Action::Arrives(request));
                }
            }
            Holder::Ready { .. } => {
                actions.push(Action::Sends(request));
                actions.push(Action::Renews(request));
                if left.cuts > 0 {
                    actions.push(Action::CannotConnect(request));
                }
            }
            Holder::Sent { renewing, .. } => {
                match wire {
                    Wire::Executed => {
                        actions.push(Action::Answers(request));
                        if left.streams > 0 {
                            actions.push(Action::Streams(request));
                        }
                    }
                    Wire::Declined => actions.push(Action::Answers(request)),
                    Wire::Idle | Wire::Sent => {}
                }
                if renewing.is_none() {
                    actions.push(Action::Renews(request));
                }
                if left.cuts > 0 {
                    actions.push(Action::Cut(request));
                }
            }
            Holder::Streaming => {
                actions.push(Action::StreamEnds(request));
                if left.cuts > 0 {
                    actions.push(Action::Cut(request));
                }
            }
            Holder::Claiming { .. }
            | Holder::Renewing { .. }
            | Holder::Ending { .. }
            | Holder::Done(_)
            | Holder::Dead => {}
        }
        if wire == Wire::Sent {
            actions.push(Action::Executes(request));
            if left.declines > 0 {
                actions.push(Action::Declines(request));
            }
        }
        if left.deaths > 0 && !holder.at_rest() {
            actions.push(Action::Dies(request, Last::Unsent));
            if asks.is_some_and(|op| op != Op::Get) {
                actions.push(Action::Dies(request, Last::Late));
            }
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let requests = self.prints.len();
        vec![State {
            holders: vec![Holder::Absent; requests],
            wires: vec![Wire::Idle; requests],
            row: None,
            late: Vec::new(),
            sweep: None,
            left: self.bounds,
            history: History::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for request in 0..self.prints.len() {
            self.actions_of(state, u8::try_from(request).expect("few requests"), actions);
        }
        actions.extend(state.late.iter().copied().map(Action::ArrivesLate));
        if state.sweep.is_some() {
            actions.push(Action::SweepWrites);
        }
        let Some(row) = state.row else { return };
        if state.may_age(row) {
            actions.push(Action::Ages);
        }
        if state.sweep.is_none() && self.sweep(row, &state.found(row)).is_some() {
            actions.push(Action::Sweeps);
        }
        if self.variant == Variant::ForgetsClaims && row.at == At::InFlight && row.age > 0 {
            actions.push(Action::Forgets);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        let state = &mut next;
        match action {
            Action::Arrives(request) => state.becomes(request, Holder::Claiming { over: None }),
            Action::Store(request, delivery) => self.deliver(state, request, delivery)?,
            Action::Sends(request) => {
                state.wires[usize::from(request)] = Wire::Sent;
                let Holder::Ready { after_unknown } = last.holders[usize::from(request)] else { return None };
                state.becomes(request, Holder::Sent { after_unknown, renewing: None });
            }
            Action::CannotConnect(request) => {
                state.left.cuts -= 1;
                self.end(state, request, End::Released { over: None });
            }
            Action::Renews(request) => {
                let over = mine(self.me(request), PhaseKind::InFlight);
                let step = Step::Over(over);
                let renews = match last.holders[usize::from(request)] {
                    Holder::Ready { after_unknown } => Holder::Renewing { after_unknown, step },
                    Holder::Sent { after_unknown, .. } => Holder::Sent { after_unknown, renewing: Some(step) },
                    _ => return None,
                };
                state.becomes(request, renews);
            }
            Action::Executes(request) => {
                state.wires[usize::from(request)] = Wire::Executed;
                state.history.effects += 1;
            }
            Action::Declines(request) => {
                state.left.declines -= 1;
                state.wires[usize::from(request)] = Wire::Declined;
            }
            Action::Answers(request) => {
                let end = match last.wires[usize::from(request)] {
                    Wire::Declined => End::Released { over: None },
                    _ => End::Completed,
                };
                self.end(state, request, end);
            }
            Action::Streams(request) => {
                state.left.streams -= 1;
                self.end(state, request, End::Headed);
            }
            Action::StreamEnds(request) => state.becomes(request, Holder::Done(Told::NotStored)),
            Action::Cut(request) => self.cut(state, request),
            Action::Dies(request, op) => {
                state.left.deaths -= 1;
                if op == Last::Late {
                    let op = last.holders[usize::from(request)].asks(self.me(request))?;
                    state.late.push(op);
                }
                state.becomes(request, Holder::Dead);
            }
            Action::ArrivesLate(op) => {
                let at = state.late.iter().position(|late| *late == op)?;
                state.late.remove(at);
                self.apply(state, op);
            }
            Action::Ages => state.row.as_mut()?.age += 1,
            Action::Sweeps => {
                let row = last.row?;
                state.sweep = self.sweep(row, &last.found(row));
            }
            Action::SweepWrites => {
                let op = state.sweep.take()?;
                self.apply(state, op);
            }
            Action::Forgets => {
                state.row = None;
                state.wrote(self, last.row);
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        invariants::all(self)
    }
}

impl State {
    /// Returns the record that a store with this row finds.
    pub fn found(&self, row: Row) -> StoredRecord {
        row.found(self.holders[usize::from(row.attempt)] == Holder::Dead)
    }

    /// Returns `true` if no holder is active and no operation is in transit to the store.
    pub fn at_rest(&self) -> bool {
        self.late.is_empty() && self.holders.iter().all(|holder| holder.at_rest())
    }

    fn becomes(&mut self, request: u8, holder: Holder) {
        let told = self.holders[usize::from(request)].told();
        self.holders[usize::from(request)] = holder;
        if holder.told() != told {
            let others_sent = self.wires.contains(&Wire::Sent);
            self.history.tell(holder.told(), others_sent);
        }
    }

    fn wrote(&mut self, protocol: &Protocol, before: Option<Row>) {
        self.history.write(protocol.guarantee, before, self.row);
    }

    fn may_age(&self, row: Row) -> bool {
        // A lease may expire while an operation is in progress. Periods of an hour or longer may
        // not.
        let long = self.left.expiry && self.late.is_empty() && self.sweep.is_none();
        match row.at {
            At::InFlight => row.age == 0,
            At::Unknown => false,
            At::Released => long && row.age == 0,
            At::Completed { .. } => long && row.age < 2,
            At::Tombstone { keep } => long && row.age < keep,
        }
    }
}
