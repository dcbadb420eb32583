//! State machine of one request in its gateway: claims, renews, executes, completes and releases,
//! one step at a time.

use onceward::decide::{self, ClaimDecision, FinalizeDecision, Release, Renew, SupersededBy};
use onceward::policy::Guarantee;
use onceward::record::{Phase, PhaseKind, Retained, StoredRecord, Version};

use crate::Variant;
use crate::store::{self, At, Op, Row, attempt, fingerprint};

/// State of a request in its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// The client has not sent it.
    Absent,
    /// Requests the claim from the store: by an insert, or by a replace of the record that it
    /// found.
    Claiming {
        /// Version that the claim replaces.
        over: Option<Version>,
    },
    /// Has the claim. Its clock may say at any time that two thirds of the lease have passed, or
    /// that they have not.
    Ready {
        /// The attempt that it replaced may have executed.
        after_unknown: bool,
    },
    /// Renews the claim before the first byte.
    Renewing {
        /// The attempt that it replaced may have executed.
        after_unknown: bool,
        /// Store operation of the renewal.
        step: Step,
    },
    /// Sends the first byte and waits for the response. Renews the claim concurrently.
    Sent {
        /// The attempt that its claim replaced may have executed.
        after_unknown: bool,
        /// Renewal that the store has not acknowledged.
        renewing: Option<Step>,
    },
    /// Streams the response body to the client. The head is stored.
    Streaming,
    /// Writes its end to the store. If the client already has its response, this runs in the
    /// background.
    Ending {
        /// End of the attempt.
        end: End,
        /// Next store operation.
        step: Step,
        /// Response that the client got, if any.
        told: Option<Told>,
    },
    /// Finished.
    Done(Told),
    /// Its process has crashed.
    Dead,
}

/// End of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Completed with a response that is stored whole.
    Completed,
    /// Completed with a response of which only the head is stored, because it streams.
    Headed,
    /// Interrupted after the first byte.
    Interrupted,
    /// Sent nothing, or has a status that is declared as released.
    Released {
        /// Version that its claim was to replace, if the outcome of the claim is unknown.
        over: Option<Version>,
    },
    /// The stream whose head is stored was truncated.
    Cut,
}

/// Store operation of an attempt that ends or renews.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Read the record.
    Look,
    /// Insert if there is no record.
    Insert,
    /// Replace that version.
    Over(Version),
}

/// Response to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    /// Its own response, stored.
    Stored(u8),
    /// First response.
    Replayed(u8),
    /// 409 `answer_not_kept`.
    NotKept,
    /// Any response that is not confirmed as stored.
    NotStored,
    /// `executed: no`, or a status that is declared so.
    Released,
    /// 409 `in_flight`.
    InFlight,
    /// 422 `key_reused`.
    Mismatch,
    /// 409 `outcome_unknown` or 502 `upstream_lost`.
    Unknown,
    /// 409 `key_expired`.
    Expired,
    /// 503 `store_unavailable`.
    Unavailable,
}

/// Identity of a holder, and the rules that apply to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Me {
    pub(crate) request: u8,
    pub(crate) print: u8,
    pub(crate) guarantee: Guarantee,
    pub(crate) variant: Variant,
}

impl Holder {
    /// Returns the store operation that the holder waits for.
    pub(crate) fn asks(self, me: Me) -> Option<Op> {
        let row = |at| Row::new(me.request, me.print, at);
        match self {
            Self::Claiming { over: None } => Some(Op::Insert(row(At::InFlight))),
            Self::Claiming { over: Some(over) } => Some(Op::Replace(over, row(At::InFlight))),
            Self::Renewing { step, .. } | Self::Sent { renewing: Some(step), .. } => Some(match step {
                Step::Over(over) => Op::Replace(over, row(At::InFlight)),
                Step::Insert => Op::Insert(row(At::InFlight)),
                Step::Look => Op::Get,
            }),
            Self::Sent { renewing: None, .. } => None,
            Self::Ending { step: Step::Look, .. } => Some(Op::Get),
            Self::Ending { end, step: Step::Insert, .. } => Some(Op::Insert(row(end.at(me)))),
            Self::Ending { end: End::Released { .. }, step: Step::Over(over), .. }
                if me.variant == Variant::NumbersAttempts =>
            {
                Some(Op::Remove(over))
            }
            Self::Ending { end, step: Step::Over(over), .. } => Some(Op::Replace(over, row(end.at(me)))),
            Self::Absent | Self::Ready { .. } | Self::Streaming | Self::Done(_) | Self::Dead => None,
        }
    }

    /// Returns the response that the client got, if any.
    pub fn told(self) -> Option<Told> {
        match self {
            Self::Done(told) => Some(told),
            Self::Ending { told, .. } => told,
            Self::Streaming => Some(Told::NotStored),
            _ => None,
        }
    }

    /// Returns `true` if no step is left, or none was taken yet.
    pub fn at_rest(self) -> bool {
        matches!(self, Self::Absent | Self::Done(_) | Self::Dead)
    }

    /// Begins to end the attempt, with a client that still waits.
    pub(crate) fn end(self, me: Me, end: End) -> Self {
        let after_unknown = match self {
            Self::Ready { after_unknown } | Self::Renewing { after_unknown, .. } | Self::Sent { after_unknown, .. } => {
                after_unknown && me.variant != Variant::ReleasesAfterUnknown
            }
            _ => false,
        };
        let end = match end {
            End::Released { .. } if after_unknown => End::Interrupted,
            end => end,
        };
        let told =
            (me.variant == Variant::TellsBeforeKeeping && end == End::Completed).then_some(Told::Stored(me.request));
        Self::Ending { end, step: Step::Over(mine(me, PhaseKind::InFlight)), told }
    }

    /// Returns the next state after the store applied the operation.
    pub(crate) fn done(self, me: Me) -> Self {
        match self {
            Self::Claiming { over } => Self::Ready { after_unknown: decide::follows_unknown(over) },
            Self::Renewing { after_unknown, .. } => Self::Ready { after_unknown },
            Self::Sent { after_unknown, .. } => Self::Sent { after_unknown, renewing: None },
            Self::Ending { end, told, .. } => ended(me, end, told),
            other => other,
        }
    }

    /// Returns the next state after the store rejected the operation and returned its record.
    pub(crate) fn found(self, me: Me, found: Option<&StoredRecord>) -> Self {
        match self {
            Self::Claiming { over } => claimed(me, over, found),
            Self::Renewing { after_unknown, .. } => match decide::renew(found, attempt(me.request)) {
                Renew::Write(over) => Self::Renewing { after_unknown, step: Step::Over(over) },
                Renew::Insert => Self::Renewing { after_unknown, step: Step::Insert },
                Renew::Lost => self.end(me, End::Released { over: None }),
            },
            Self::Sent { after_unknown, .. } => match decide::renew(found, attempt(me.request)) {
                Renew::Write(over) => Self::Sent { after_unknown, renewing: Some(Step::Over(over)) },
                Renew::Insert => Self::Sent { after_unknown, renewing: Some(Step::Insert) },
                Renew::Lost => Self::Sent { after_unknown, renewing: None },
            },
            Self::Ending { end, told, .. } => match end {
                End::Completed | End::Headed => {
                    let late = match (me.variant, found) {
                        (Variant::CompletesBlindly, Some(found)) => {
                            FinalizeDecision::Write { over: found.record.version(), audited: false }
                        }
                        _ => decide::complete(found, attempt(me.request), &fingerprint(me.print)),
                    };
                    late_word(me, end, told, late)
                }
                End::Interrupted => {
                    late_word(me, end, told, decide::unknown(found, attempt(me.request), &fingerprint(me.print)))
                }
                End::Released { over } => released(me, found, over, told),
                End::Cut => match decide::truncated(found, attempt(me.request)) {
                    Some(over) => Self::Ending { end, step: Step::Over(over), told },
                    None => Self::Done(Told::NotStored),
                },
            },
            other => other,
        }
    }

    /// Returns the next state after the store did not respond: the operation may have taken effect,
    /// or still may.
    pub(crate) fn unanswered(self, me: Me) -> Self {
        match self {
            Self::Claiming { .. } if me.variant == Variant::SendsUnclaimed => Self::Ready { after_unknown: false },
            // No byte was sent. The client gets a retryable error, and the claim is released as
            // soon as the store responds. If the replaced attempt may have executed, an unknown
            // record is left instead.
            Self::Claiming { over } => {
                let end = match decide::follows_unknown(over) {
                    true if me.variant != Variant::ReleasesAfterUnknown => End::Interrupted,
                    _ => End::Released { over },
                };
                Self::Ending { end, step: Step::Look, told: Some(Told::Unavailable) }
            }
            Self::Renewing { .. } => self.end(me, End::Released { over: None }),
            Self::Sent { after_unknown, .. } => Self::Sent { after_unknown, renewing: None },
            Self::Ending { end, step, told } => {
                let now = match end {
                    End::Interrupted => Told::Unknown,
                    _ => Told::NotStored,
                };
                Self::Ending { end, step, told: told.or(Some(now)) }
            }
            other => other,
        }
    }
}

impl End {
    fn at(self, me: Me) -> At {
        match self {
            Self::Completed => At::Completed { answer: me.request, whole: true },
            Self::Headed => At::Completed { answer: me.request, whole: false },
            Self::Interrupted | Self::Cut => At::Unknown,
            Self::Released { .. } => At::Released,
        }
    }
}

pub(crate) fn mine(me: Me, stage: PhaseKind) -> Version {
    Version { attempt: attempt(me.request), stage }
}

fn claimed(me: Me, over: Option<Version>, found: Option<&StoredRecord>) -> Holder {
    let Some(found) = found else { return Holder::Claiming { over: None } };
    if found.record.attempt == attempt(me.request) {
        // The store's driver sent the claim twice, and the first one arrived. No byte was sent, so
        // the claim is still usable even if the sweep has marked it as unknown meanwhile.
        return Holder::Ready { after_unknown: decide::follows_unknown(over) };
    }
    let asked = match (me.variant, found.record.print()) {
        (Variant::IgnoresFingerprint, Some(print)) => print.fingerprint,
        _ => fingerprint(me.print),
    };
    let guarantee = match me.variant {
        Variant::RunsAgainAfterTheLease => Guarantee::AtLeastOnce,
        _ => me.guarantee,
    };
    Holder::Done(match decide::claim(found, &asked, guarantee) {
        ClaimDecision::Execute => return Holder::Claiming { over: Some(found.record.version()) },
        ClaimDecision::Replay(kept) => replay(kept),
        ClaimDecision::InFlight { .. } => Told::InFlight,
        ClaimDecision::Mismatch => Told::Mismatch,
        ClaimDecision::Unknown => Told::Unknown,
        ClaimDecision::Expired(_) => Told::Expired,
    })
}

fn released(me: Me, found: Option<&StoredRecord>, over: Option<Version>, told: Option<Told>) -> Holder {
    let end = End::Released { over };
    let over = if me.variant == Variant::ForgetsWhatItReplaced { None } else { over };
    let release = match (me.variant, found) {
        (Variant::ReleasesBlindly, Some(found)) if !matches!(found.record.phase, Phase::Released { .. }) => {
            Release::Write(found.record.version())
        }
        _ => decide::release(found, attempt(me.request), over),
    };
    match release {
        Release::Write(over) => Holder::Ending { end, step: Step::Over(over), told },
        Release::Insert => Holder::Ending { end, step: Step::Insert, told },
        // Another attempt has the key. The client's response depends on the winner, as after a
        // completion.
        Release::Done => match found.filter(|found| found.record.attempt != attempt(me.request)) {
            Some(_) => late_word(me, end, told, decide::complete(found, attempt(me.request), &fingerprint(me.print))),
            None => ended(me, end, told),
        },
    }
}

fn late_word(me: Me, end: End, told: Option<Told>, late: FinalizeDecision<'_>) -> Holder {
    let now = match late {
        FinalizeDecision::Write { over, .. } => return Holder::Ending { end, step: Step::Over(over), told },
        FinalizeDecision::AlreadyRecorded(record) => match &record.phase {
            Phase::Completed { .. } => return ended(me, end, told),
            _ if end == End::Interrupted => Told::Unknown,
            _ => Told::NotStored,
        },
        FinalizeDecision::Superseded(SupersededBy::Response(kept)) => replay(kept),
        FinalizeDecision::Superseded(SupersededBy::Running) => Told::InFlight,
        // The store of the model deletes only ended records: a completion of this attempt was
        // stored, and expired long ago.
        FinalizeDecision::Superseded(SupersededBy::None) | FinalizeDecision::Missing => Told::NotStored,
    };
    Holder::Done(told.unwrap_or(now))
}

/// Returns the final state once its end is stored.
fn ended(me: Me, end: End, told: Option<Told>) -> Holder {
    let now = match end {
        End::Completed => Told::Stored(me.request),
        End::Headed => return Holder::Streaming,
        End::Interrupted => Told::Unknown,
        End::Released { .. } => Told::Released,
        End::Cut => Told::NotStored,
    };
    Holder::Done(told.unwrap_or(now))
}

fn replay(kept: &Retained) -> Told {
    match kept {
        Retained::Response(_) => Told::Replayed(store::answer(kept)),
        Retained::HeadOnly(_) => Told::NotKept,
    }
}
