//! The protocol of a keyed request, explored state by state: whatever clients, holders, the upstream and the store's answers
//! do, in whatever order, the promises of the design hold.
//!
//! The model has no rule of its own. Each judgement is a call of `onceward::decide`: [`claim`], [`complete`], [`unknown`],
//! [`truncated`], [`release`], [`renew`], [`sweep`] and [`effective_state`], over real [`StoredRecord`]s. What is written here is what surrounds
//! them: who asks when, what gets lost, and the [laws](invariants) that must hold in each state.
//!
//! # What is modelled
//!
//! One record, and several requests that bear its key: retries, duplicates, and those with another fingerprint. A retry is
//! one more request; it may come at any time, at once or after all else is over.
//!
//! - **A holder** is the gateway that has a request: a process of its own, which may pause between any two of its steps for
//!   as long as it likes, and die at any of them. It claims by an insert and, if something is there that does not bind, by a
//!   replace of that version. With the claim it sends; or renews first, since its clock says that two thirds of the lease
//!   are over (it may say so at any time, and be wrong either way); or cannot connect. While it listens it renews. It
//!   completes, releases, or gives up (a reset, a drain, `capture_timeout`), and hears the store's word on that. Where the
//!   store did not answer, it goes on in the background until it does, its client told before.
//! - **The upstream** executes what was sent at any later time, also after the holder has given up or is dead, or never, or
//!   declines it by a status that is declared as released. It may answer by a stream, whose head is kept and which may be cut.
//! - **The store** does to its one row what its contract says, one operation after the other. An operation of a holder is
//!   answered; or lost with its answer; or applied *later*, at any time, its caller told that nobody knows (applied at once
//!   with a lost answer is the shortest case of it); or sent twice by the store's driver, so that a second one of it arrives
//!   at any time. How often is bounded by [`Bounds::faults`].
//! - **Leases** end at any moment after the last write, retention and tombstones likewise ([`Bounds::expiry`]).
//! - **The sweep** looks, and writes what it decided at any time later, over the version that it saw.
//!
//! # What is not
//!
//! - *Waiting duplicates, bodies, HTTP*: a waiter is a retry that comes later.
//! - *The loss of the store's memory*: a completion that finds nothing is refused here.
//! - *Operators and probes*: nothing settles an `unknown` but a late answer.
//! - *Dishonest upstreams*: one that executes and then says a status that is declared as released is believed.
//! - *Several records*: ids share nothing in a store but its capacity.
//! - *Time as a number.* A retention, a tombstone and what a release leaves do not end while an operation is under way whose
//!   caller gave up. In truth one may be sent a moment before that end and arrive a moment after it; a claim that does so
//!   leaves a key `unknown` of which no byte was sent.

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

/// The protocol, within bounds.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// The fingerprint of each request. Those that are alike arrive in their order, since nothing tells them apart before.
    pub prints: Vec<u8>,
    /// What the route says of lost holders.
    pub guarantee: Guarantee,
    /// How much may go wrong.
    pub bounds: Bounds,
    /// As it is built, or broken in one place.
    pub variant: Variant,
}

/// How much may go wrong in one run, and which of the rarer things may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Operations of the store that are lost, come late or come twice.
    pub faults: u8,
    /// Processes that die.
    pub deaths: u8,
    /// Requests that are cut off, given up or drained after their first byte, or that cannot connect before it.
    pub cuts: u8,
    /// Requests that the upstream declines.
    pub declines: u8,
    /// Answers that stream.
    pub streams: u8,
    /// Whether retention, tombstones and what is left of releases end.
    pub expiry: bool,
}

/// The protocol as it is built, or broken in one place: a model that cannot fail proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Variant {
    /// As it is built.
    #[default]
    Built,
    /// The store forgets a claim when its lease is over, as a TTL on an in-flight marker does.
    ForgetsClaims,
    /// The sweep removes what it should write as unknown.
    SweepsClaims,
    /// The store compares the attempt and not where it stands.
    ComparesAttemptOnly,
    /// A lost holder's request is run again under `at-most-once`.
    RunsAgainAfterTheLease,
    /// A holder sends although the store did not answer its claim.
    SendsUnclaimed,
    /// A release does not compare the attempt.
    ReleasesBlindly,
    /// Attempts have numbers in the place of random ids, counted in the record; and a release deletes the record, so that the
    /// next attempt has the first number again.
    NumbersAttempts,
    /// A release does not look for what its claim was to replace.
    ForgetsWhatItReplaced,
    /// A request that was cut off after its first byte is released.
    ReleasesAfterSending,
    /// A completion overwrites what it finds.
    CompletesBlindly,
    /// The client gets its answer before the store has it, and is told that it is stored.
    TellsBeforeKeeping,
    /// Nobody compares fingerprints.
    IgnoresFingerprint,
    /// A request that was declined, or not sent, is released although the attempt before it may have executed.
    ReleasesAfterUnknown,
}

/// One moment of the whole.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Each request's gateway.
    pub holders: Vec<Holder>,
    /// Each request's way to the upstream.
    pub wires: Vec<Wire>,
    /// What the store has.
    pub row: Option<Row>,
    /// Operations whose callers gave up, and that may still arrive.
    pub late: Vec<Op>,
    /// What the sweep has decided and not yet written.
    pub sweep: Option<Op>,
    /// What may still go wrong.
    pub left: Bounds,
    /// What the laws remember.
    pub history: History,
}

/// A request's way to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    /// No byte was sent.
    Idle,
    /// It was sent, and has not arrived.
    Sent,
    /// It took effect.
    Executed,
    /// It was declined, and took none.
    Declined,
}

/// What happens next. The number is the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The client sends it.
    Arrives(u8),
    /// The store gets the holder's operation, or does not.
    Store(u8, Delivery),
    /// Its first byte goes to the upstream.
    Sends(u8),
    /// The upstream cannot be reached.
    CannotConnect(u8),
    /// The holder shows a sign of life.
    Renews(u8),
    /// It takes effect at the upstream.
    Executes(u8),
    /// The upstream declines it.
    Declines(u8),
    /// The upstream's answer reaches the holder.
    Answers(u8),
    /// The head of a stream reaches the holder.
    Streams(u8),
    /// A stream ends whole.
    StreamEnds(u8),
    /// The connection is cut, or the holder gives up.
    Cut(u8),
    /// The holder's process dies; what it had asked of the store may still arrive, or not.
    Dies(u8, Last),
    /// An operation arrives whose caller gave up.
    ArrivesLate(Op),
    /// The row gets older: a lease, a retention or a tombstone ends.
    Ages,
    /// The sweep looks at the row.
    Sweeps,
    /// The sweep writes what it decided.
    SweepWrites,
    /// A broken store forgets a claim.
    Forgets,
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is done and answered.
    Answered,
    /// It is lost.
    Lost,
    /// It is done some time later; its caller gives up.
    Late,
    /// The store's driver sends it again; both may be done.
    Twice,
}

/// What becomes of the operation that a dying process had begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// There is none, or it was not sent.
    Unsent,
    /// It may still arrive.
    Late,
}

impl Protocol {
    /// The protocol as it is built.
    pub fn new(prints: &[u8], guarantee: Guarantee, bounds: Bounds) -> Self {
        Self { prints: prints.to_vec(), guarantee, bounds, variant: Variant::Built }
    }

    /// The same, broken in one place.
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

    /// What the holder makes of the end of its request, beside which a renewal may still be under way.
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
    /// What a store finds that has this row.
    pub fn found(&self, row: Row) -> StoredRecord {
        row.found(self.holders[usize::from(row.attempt)] == Holder::Dead)
    }

    /// Whether nobody is at work on the key and nothing is on its way to the store.
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
        // A lease may end while an operation is under way; what lasts for an hour or longer may not.
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
