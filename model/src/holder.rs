//! One request in its gateway: the loop that claims, renews, executes, completes and releases, a step at a time.

use onceward::decide::{self, ClaimDecision, FinalizeDecision, Release, Renew, SupersededBy};
use onceward::policy::Guarantee;
use onceward::record::{Phase, PhaseKind, Retained, StoredRecord, Version};

use crate::Variant;
use crate::store::{self, At, Op, Row, attempt, fingerprint};

/// Where a request stands in its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// The client has not sent it.
    Absent,
    /// It asks the store for the claim: by an insert, or over what it found.
    Claiming {
        /// What the claim replaces.
        over: Option<Version>,
    },
    /// It has the claim. Its clock says at any time that two thirds of the lease are over, or that they are not.
    Ready {
        /// What it replaced may have executed.
        after_unknown: bool,
    },
    /// It renews before the first byte.
    Renewing {
        /// What it replaced may have executed.
        after_unknown: bool,
        /// How the renewal asks.
        step: Step,
    },
    /// The first byte is on its way; it listens, and renews beside that.
    Sent {
        /// What its claim replaced may have executed.
        after_unknown: bool,
        /// A renewal that the store has not answered.
        renewing: Option<Step>,
    },
    /// The answer's head is kept and its body streams to the client.
    Streaming,
    /// It tells the store how it ended. Where the client has its answer already, in the background.
    Ending {
        /// How it ended.
        end: End,
        /// What it asks the store next.
        step: Step,
        /// What the client was told, if it was.
        told: Option<Told>,
    },
    /// Nothing more is to be done.
    Done(Told),
    /// Its process is dead.
    Dead,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// With an answer that is kept whole.
    Completed,
    /// With an answer of which only the head is kept, since it streams.
    Headed,
    /// Interrupted after the first byte.
    Interrupted,
    /// It sent nothing, or its status is declared as released.
    Released {
        /// What its claim was to replace, where nobody knows what became of the claim.
        over: Option<Version>,
    },
    /// The stream whose head is kept was cut.
    Cut,
}

/// What an attempt that ends, or gives a sign of life, asks the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// What is there?
    Look,
    /// To put its word where nothing is.
    Insert,
    /// To put its word over that version.
    Over(Version),
}

/// What the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    /// Its own answer, kept.
    Stored(u8),
    /// The first answer.
    Replayed(u8),
    /// 409 `answer_not_kept`.
    NotKept,
    /// Whatever it is, it is not confirmed as stored.
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

/// Who a holder is, and by which rules it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Me {
    pub(crate) request: u8,
    pub(crate) print: u8,
    pub(crate) guarantee: Guarantee,
    pub(crate) variant: Variant,
}

impl Holder {
    /// What it waits for the store to answer.
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

    /// What the client was told, if it was.
    pub fn told(self) -> Option<Told> {
        match self {
            Self::Done(told) => Some(told),
            Self::Ending { told, .. } => told,
            Self::Streaming => Some(Told::NotStored),
            _ => None,
        }
    }

    /// Whether nobody will do anything for it any more, or has begun to.
    pub fn at_rest(self) -> bool {
        matches!(self, Self::Absent | Self::Done(_) | Self::Dead)
    }

    /// Begins to end, with a client that still waits.
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

    /// The store did what was asked.
    pub(crate) fn done(self, me: Me) -> Self {
        match self {
            Self::Claiming { over } => Self::Ready { after_unknown: decide::follows_unknown(over) },
            Self::Renewing { after_unknown, .. } => Self::Ready { after_unknown },
            Self::Sent { after_unknown, .. } => Self::Sent { after_unknown, renewing: None },
            Self::Ending { end, told, .. } => ended(me, end, told),
            other => other,
        }
    }

    /// The store did not do it, and shows what is there.
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

    /// The store did not answer: the operation may have taken effect, or still may.
    pub(crate) fn unanswered(self, me: Me) -> Self {
        match self {
            Self::Claiming { .. } if me.variant == Variant::SendsUnclaimed => Self::Ready { after_unknown: false },
            // No byte was sent: the client is told to come again, and the claim is given back until the store answers; over an
            // attempt that may have executed it leaves an unknown again.
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
        // The store's driver had sent the claim twice, and the first arrived. No byte was sent, so it is the attempt's to
        // use even where the sweep has given it up meanwhile.
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
        // Another attempt has the key: what its client is told is the winner's matter, as after a completion.
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
        // The store of the model forgets nothing but what has ended: its own end was there, long ago.
        FinalizeDecision::Superseded(SupersededBy::None) | FinalizeDecision::Missing => Told::NotStored,
    };
    Holder::Done(told.unwrap_or(now))
}

/// Its end is in the store.
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
