//! Invariants that must hold in each state, and events that must be reachable, so that no invariant
//! holds vacuously.

use onceward::decide::{self, EffectiveState, Sweep};
use onceward::policy::Guarantee;
use onceward::record::PhaseKind;
use stateright::Property;

use crate::holder::{End, Holder, Step, Told, mine};
use crate::store::{At, Row};
use crate::{Protocol, State, Wire};

/// At most one request of a key takes effect. (`at-most-once` only.)
pub const ONE_EFFECT: &str = "one effect";
/// A stored response does not change, and is deleted only after its retention.
pub const KEPT_FOR_GOOD: &str = "a kept answer stays";
/// A response that was reported as stored stays in the store as long as promised, and no other
/// response is ever reported as stored.
pub const NEVER_CONTRADICTED: &str = "what was shown as stored is never contradicted";
/// A request with another fingerprint neither claims a key that is taken nor gets its response.
pub const NO_MIX_UP: &str = "no mix-up of fingerprints";
/// Only the attempt that has the key completes, interrupts, renews or releases it.
pub const NO_OVERTAKEN_WRITE: &str = "an overtaken holder writes nothing";
/// No claim and no unknown is ever deleted.
pub const NEVER_DELETED: &str = "no claim and no unknown is deleted";
/// No client is told that a request was not executed if it was, or will be.
pub const RELEASED_DID_NOT_RUN: &str = "what is called released did not run";
/// No client is told that a key is free while an attempt of it has executed, or is in transit to
/// the service.
pub const RELEASED_AFTER_NOTHING: &str = "what is called released follows nothing that may have run";
/// A key whose holder survived to the end and sent no byte is free in a final state.
/// (`at-most-once` only: otherwise a claim that arrives late over a lost one leaves the key as lost
/// as it was, and the next caller takes over anyway.)
pub const UNSENT_IS_FREE: &str = "a key of which no byte was sent comes free";
/// No client gets "in flight" once no holder is active and the lease has expired, and the sweep
/// reports the key to operators.
pub const NEVER_STUCK: &str = "no key is in flight for ever";

/// A retry gets the first response.
pub const REPLAY: &str = "seen: a replay";
/// A retry is told that the outcome is unknown.
pub const UNKNOWN: &str = "seen: an unknown outcome";
/// A request with another fingerprint is rejected.
pub const MISMATCH: &str = "seen: a mismatch refused";
/// A holder whose claim was marked as unknown completes after all.
pub const COMPLETED_FROM_UNKNOWN: &str = "seen: a completion over an unknown";
/// A claim whose acknowledgement was lost is released.
pub const RELEASED_AFTER_LOST_CLAIM: &str = "seen: a release after a lost claim";
/// A claim arrives after it was released, and finds the key taken.
pub const LATE_CLAIM_REFUSED: &str = "seen: a late claim that finds the key taken";
/// A completion whose acknowledgement was lost is found to be stored.
pub const KEPT_ALTHOUGH_UNANSWERED: &str = "seen: an answer kept, though the store did not say so";
/// A request that was declined leaves the key to the next one.
pub const RUN_AFTER_RELEASE: &str = "seen: an execution after a release";
/// The next caller takes over from a lost holder.
pub const TAKEOVER: &str = "seen: a takeover";
/// The client of a superseded holder gets the winner's response.
pub const WINNERS_ANSWER: &str = "seen: the winner's answer for an overtaken client";
/// A stream is truncated after its head was stored.
pub const STREAM_CUT: &str = "seen: a stream cut";
/// A key is known, but its response has expired.
pub const EXPIRED: &str = "seen: an expired answer";
/// A key is used again after its tombstone.
pub const USED_ANEW: &str = "seen: a key used anew after its tombstone";

/// History that the invariants need; no holder reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct History {
    /// Number of requests that took effect since the key was last free by the end of a retention.
    pub effects: u8,
    /// Response that was reported as stored or replayed.
    pub shown: Option<u8>,
    broken: Broken,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Broken {
    kept: bool,
    contradicted: bool,
    mixed_up: bool,
    overtaken: bool,
    deleted: bool,
    released: bool,
}

impl History {
    /// Records a response to a client.
    pub(crate) fn tell(&mut self, told: Option<Told>, is_under_way: bool) {
        self.broken.released |= told == Some(Told::Released) && (self.effects > 0 || is_under_way);
        if let Some(Told::Stored(answer) | Told::Replayed(answer)) = told {
            self.broken.contradicted |= self.shown.is_some_and(|shown| shown != answer);
            self.shown = Some(answer);
        }
    }

    /// Records a change of the row.
    pub(crate) fn write(&mut self, guarantee: Guarantee, before: Option<Row>, after: Option<Row>) {
        let free = before.is_some_and(|row| decide::effective_state(&row.found(false)) == EffectiveState::Free);
        let was_kept = before.is_some_and(|row| matches!(row.at, At::Completed { .. } | At::Tombstone { .. }));
        match (before, after) {
            (None, None) => {}
            (None, Some(after)) => self.broken.overtaken |= !matches!(after.at, At::InFlight | At::Released),
            (Some(before), None) => {
                self.broken.deleted |= matches!(before.at, At::InFlight | At::Unknown);
                self.broken.kept |= was_kept && !free;
                self.broken.overtaken |= before.at == At::Released && before.age == 0;
            }
            (Some(before), Some(after)) if before.attempt == after.attempt => match (before.at, after.at) {
                (At::InFlight, At::InFlight | At::Completed { .. } | At::Released | At::Unknown)
                | (At::Unknown, At::InFlight | At::Completed { .. } | At::Released)
                | (At::Released, At::Completed { .. } | At::Unknown)
                | (At::Completed { whole: false, .. }, At::Unknown) => {}
                (At::Completed { .. }, At::Tombstone { .. }) => self.broken.kept |= before.age == 0,
                _ if was_kept => self.broken.kept = true,
                _ => self.broken.overtaken = true,
            },
            (Some(_), Some(after)) if free => {
                self.broken.overtaken |= !matches!(after.at, At::InFlight | At::Released);
            }
            (Some(_), Some(_)) if was_kept => self.broken.kept = true,
            (Some(before), Some(after)) => {
                let takeover = after.at == At::InFlight && guarantee == Guarantee::AtLeastOnce;
                self.broken.overtaken |= !takeover;
                self.broken.mixed_up |= before.print != after.print;
            }
        }
        if was_kept && free {
            // The promises for the last response have expired, and the key counts as unused.
            self.effects = 0;
            self.shown = None;
        }
    }
}

pub(crate) fn all(protocol: &Protocol) -> Vec<Property<Protocol>> {
    let mut all = vec![
        Property::always(KEPT_FOR_GOOD, |_, state: &State| !state.history.broken.kept),
        Property::always(NEVER_CONTRADICTED, never_contradicted),
        Property::always(NO_MIX_UP, no_mix_up),
        Property::always(NO_OVERTAKEN_WRITE, |_, state: &State| !state.history.broken.overtaken),
        Property::always(NEVER_DELETED, |_, state: &State| !state.history.broken.deleted),
        Property::always(RELEASED_DID_NOT_RUN, |_, state: &State| {
            requests(state).all(|(holder, wire)| holder.told() != Some(Told::Released) || wire != Wire::Executed)
        }),
        Property::always(RELEASED_AFTER_NOTHING, |_, state: &State| !state.history.broken.released),
        Property::always(NEVER_STUCK, never_stuck),
    ];
    if protocol.guarantee == Guarantee::AtMostOnce {
        all.push(Property::always(ONE_EFFECT, |_, state: &State| state.history.effects <= 1));
        all.push(Property::always(UNSENT_IS_FREE, unsent_is_free));
    }
    all.extend(seen());
    all
}

fn seen() -> [Property<Protocol>; 13] {
    [
        Property::sometimes(REPLAY, |_, state: &State| told(state, |told| matches!(told, Told::Replayed(_)))),
        Property::sometimes(UNKNOWN, |_, state: &State| {
            requests(state).any(|(holder, wire)| *holder == Holder::Done(Told::Unknown) && wire == Wire::Idle)
        }),
        Property::sometimes(MISMATCH, |_, state: &State| told(state, |told| told == Told::Mismatch)),
        Property::sometimes(COMPLETED_FROM_UNKNOWN, |protocol, state: &State| {
            owner(state).is_some_and(|(row, holder)| {
                let over = Step::Over(mine(protocol.me(row.attempt), PhaseKind::Unknown));
                row.at == At::Unknown
                    && matches!(holder, Holder::Ending { end: End::Completed, step, .. } if step == over)
            })
        }),
        Property::sometimes(RELEASED_AFTER_LOST_CLAIM, |_, state: &State| {
            owner(state)
                .is_some_and(|(row, holder)| row.at == At::Released && holder == Holder::Done(Told::Unavailable))
        }),
        Property::sometimes(LATE_CLAIM_REFUSED, |protocol, state: &State| {
            owner(state).is_some_and(|(row, holder)| {
                let claim = Holder::Claiming { over: None }.asks(protocol.me(row.attempt));
                row.at == At::Released
                    && holder == Holder::Done(Told::Unavailable)
                    && state.late.iter().any(|late| Some(*late) == claim)
            })
        }),
        Property::sometimes(KEPT_ALTHOUGH_UNANSWERED, |_, state: &State| {
            owner(state).is_some_and(|(row, holder)| {
                matches!(row.at, At::Completed { .. }) && holder == Holder::Done(Told::NotStored)
            })
        }),
        Property::sometimes(RUN_AFTER_RELEASE, |_, state: &State| {
            state.wires.contains(&Wire::Declined) && state.wires.contains(&Wire::Executed)
        }),
        Property::sometimes(TAKEOVER, |_, state: &State| {
            owner(state).is_some_and(|(row, holder)| {
                let other = |at: usize| at != usize::from(row.attempt);
                matches!(holder, Holder::Ready { .. })
                    && state.wires.iter().enumerate().any(|(at, wire)| other(at) && *wire == Wire::Executed)
            })
        }),
        Property::sometimes(WINNERS_ANSWER, |_, state: &State| {
            requests(state).enumerate().any(|(at, (holder, wire))| {
                let other = |answer: u8| usize::from(answer) != at;
                wire == Wire::Executed && matches!(holder.told(), Some(Told::Replayed(answer)) if other(answer))
            })
        }),
        Property::sometimes(STREAM_CUT, |_, state: &State| {
            owner(state).is_some_and(|(row, holder)| {
                row.at == At::Unknown && holder == Holder::Done(Told::NotStored) && state.left.streams == 0
            })
        }),
        Property::sometimes(EXPIRED, |_, state: &State| told(state, |told| told == Told::Expired)),
        Property::sometimes(USED_ANEW, |_, state: &State| {
            state.history.effects == 1 && state.wires.iter().filter(|wire| **wire == Wire::Executed).count() == 2
        }),
    ]
}

fn never_contradicted(_: &Protocol, state: &State) -> bool {
    let kept = state.history.shown.is_none_or(|shown| {
        state.row.is_some_and(|row| match row.at {
            At::Completed { answer, .. } => answer == shown,
            At::Tombstone { .. } => row.attempt == shown,
            At::InFlight | At::Released | At::Unknown => false,
        })
    });
    kept && !state.history.broken.contradicted
}

fn no_mix_up(protocol: &Protocol, state: &State) -> bool {
    let shown = |told| match told {
        Some(Told::Stored(answer) | Told::Replayed(answer)) => Some(protocol.prints[usize::from(answer)]),
        _ => None,
    };
    let own = |(holder, print): (&Holder, &u8)| shown(holder.told()).is_none_or(|shown| shown == *print);
    state.holders.iter().zip(&protocol.prints).all(own) && !state.history.broken.mixed_up
}

fn unsent_is_free(_: &Protocol, state: &State) -> bool {
    let sent = owner(state).is_none_or(|(row, holder)| {
        holder == Holder::Dead
            || state.wires[usize::from(row.attempt)] != Wire::Idle
            || !matches!(row.at, At::InFlight | At::Unknown)
    });
    sent || !state.at_rest()
}

fn never_stuck(_: &Protocol, state: &State) -> bool {
    let Some(row) = state.row.filter(|_| state.at_rest()) else { return true };
    let found = state.found(Row { age: row.age.max(1), ..row });
    let in_flight = matches!(decide::effective_state(&found), EffectiveState::InFlight { .. });
    let swept = row.at != At::InFlight || matches!(decide::sweep(&found), Sweep::Write(_));
    !in_flight && swept
}

fn requests(state: &State) -> impl Iterator<Item = (&Holder, Wire)> {
    state.holders.iter().zip(state.wires.iter().copied())
}

fn told(state: &State, is: impl Fn(Told) -> bool) -> bool {
    state.holders.iter().any(|holder| holder.told().is_some_and(&is))
}

/// Returns the row of the store, and the holder whose attempt wrote it.
fn owner(state: &State) -> Option<(Row, Holder)> {
    state.row.map(|row| (row, state.holders[usize::from(row.attempt)]))
}
