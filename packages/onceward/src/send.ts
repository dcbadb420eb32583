/** Sends a request until its outcome is known, with one key throughout. */

import { isOffline, reasonOf, sleep, TIMED_OUT, withTimeout, type Deadline } from './deadline.js'
import { errorOf, type ErrorDetails } from './errors.js'
import { isVolatile } from './key.js'
import type { Options } from './options.js'
import { attempt, type PreparedRequest } from './prepare.js'
import { backoff, decide, type Decision, type Observation } from './retry.js'
import { isCrossOrigin, isReached, isSupported, markSupported, readPolicy, supportsKeys } from './serverSupport.js'
import { endpoint, parseResponse, statusRequest, transport, type AttemptResult, type LookupResult } from './status.js'
import { FIRST_SENT, KEY, outcomeOf, type Executed } from './wire.js'

/** What is sent, and under which key. */
export interface SendJob {
  readonly prepared: PreparedRequest
  readonly key: string
  /** True if the caller set the header: it is sent as given. */
  readonly isGiven: boolean
  readonly intent: string
  readonly firstSentAt: number
  /** True if the key was sent before, by an earlier page or another tab. */
  readonly maybeExecuted: boolean
  /** Whether the content is what the key was sent with first, as far as the caller names it. */
  readonly isSameContent?: boolean | undefined
  readonly deadline: Deadline
  /** True if nobody set the deadline: it is shorter while the origin never responded. */
  readonly isDefaultDeadline: boolean
  /** Aborts when no caller is left. */
  readonly signal: AbortSignal
  readonly onProgress?: ((progress: RawProgress) => void) | undefined
}

/** Progress as adapters get it. */
export interface RawProgress {
  readonly attempts: number
  readonly isReached: boolean
  readonly cause: unknown
  readonly last: AttemptResult | undefined
}

export const DEADLINE_MS = 60_000
/** The deadline of retries while the origin never responded. */
const UNREACHED_MS = 20_000
export const ATTEMPT_MS_MAX = 25_000
export const WAIT_SECONDS = 10
/** How long the last question may take, after the deadline. */
const LAST_QUERY_MS = 5000

/** Returns the result; rejects with an {@link OncewardError} or the signal's reason. The decision is passed to `onEnd`. */
export async function send(job: SendJob, options: Options, onEnd: (decision: Decision) => void): Promise<AttemptResult> {
  const { key, intent, deadline, signal } = job
  let { prepared, maybeExecuted } = job
  const { url, origin } = prepared
  const header = job.isGiven ? key : JSON.stringify(key)
  const support = () => supportsKeys(origin, options)
  const warn = options.onWarning ?? console.warn
  let sends = 0
  let isStatusQuery = false
  let last: AttemptResult | undefined
  let cause: unknown
  /** The decision before the last question: what is thrown if that brings nothing. */
  let final: Decision | undefined

  const remainingMs = () =>
    final ? 0 : Math.max(0, deadline.remainingMs - (job.isDefaultDeadline && !isReached(origin) ? DEADLINE_MS - UNREACHED_MS : 0))
  const attemptMs = () => Math.min(options.attemptTimeout ?? ATTEMPT_MS_MAX, final ? LAST_QUERY_MS : deadline.remainingMs)
  const judge = (observation: Observation): Decision =>
    decide({ isStatusQuery, supportsKeys: support(), maybeExecuted, remainingMs: remainingMs() }, observation)
  /** Judges an observation, and finds out whether the origin supports keys if that matters. */
  const decided = async (observation: Observation): Promise<Decision> => {
    for (let tries = 1; ; tries++) {
      const decision = judge(observation)
      if (decision.action !== 'check') return decision
      const supports = await withTimeout(Math.min(attemptMs(), remainingMs()), signal, (signal) =>
        readPolicy(origin, (options.fetch ?? fetch)(new Request(endpoint(options, url, 'policy'), { signal })), warn)).catch((error: unknown) => {
        if (error !== TIMED_OUT) throw error
      })
      if (supports === undefined) await pause(Math.min(backoff(tries, Math.random()), remainingMs()))
    }
  }
  const report = () => job.onProgress?.({ attempts: sends, isReached: isReached(origin), cause, last })
  const pause = async (ms: number) => {
    await sleep(ms, signal)
    if (isOffline()) report()
    await deadline.online(signal)
  }
  const act = async (decision: Decision): Promise<void> => {
    if (decision.executed !== 'no') maybeExecuted = true
    if (decision.action === 'throw') {
      onEnd(decision)
      if (decision.error === 'AbortError') throw reasonOf(signal)
      const details: ErrorDetails = { executed: decision.executed, intent, problem: last?.problem, response: last?.response, cause }
      throw errorOf(decision.error, details, hint(decision))
    }
    if ('after' in decision) {
      await pause(decision.after === 'backoff' ? backoff(sends, Math.random()) : decision.after)
      isStatusQuery = decision.action === 'ask'
    }
  }
  const hint = ({ reason, executed }: Decision): string =>
    reason === 'not-honoured' ? `; ${origin} is not known to honour keys: look whether it took effect`
      : executed === 'no' || isReached(origin) ? ''
        : `; ${origin} never responded: it is down${isCrossOrigin(origin) ? ', or refused the preflight: Access-Control-Allow-Headers must have idempotency-key' : ''}`
  /** The error of other content under a known name, after the last question. */
  const payloadChanged = ({ action, executed, error }: { action: string; executed: Executed; error?: string }) => {
    const first: LookupResult = action === 'return' ? { state: 'answered', response: last!.response }
      : error === 'InFlightError' ? { state: 'in-flight', afterMs: 1000 } : { state: 'interrupted', executed, problem: last?.problem }
    const volatileFields = volatileFieldsOf(prepared)
    return errorOf('PayloadChangedError', { executed, intent, first, volatileFields } as ErrorDetails,
      `: "${intent}" was sent with other content before${volatileFields[0] ? ` (different at each send: ${volatileFields.join()})` : ''}. Name another intent for another action`)
  }

  // The first send of this page may be a resend of the key.
  if (maybeExecuted) {
    const decision = await decided({ failure: 'network' })
    if (decision.action === 'throw') await act(decision)
  }
  for (let hasCompared = false; ;) {
    if (!isStatusQuery) sends += 1
    report()
    let observation: Observation
    const before = last
    last = undefined
    try {
      // Where keys are not known to be supported nothing may be sent again: the attempt has all the time there is.
      last = await withTimeout(support() || final ? attemptMs() : deadline.remainingMs, signal, once)
      observation = last.observation
      cause = undefined
      if (outcomeOf(observation.outcome)) markSupported(origin)
    } catch (error) {
      cause = error
      observation = { failure: signal.aborted ? 'aborted' : error === TIMED_OUT ? 'timeout' : 'network' }
    }
    options.onAttempt?.({ intent, key, sends, isStatusQuery, observation, decision: judge(observation) })
    let decision = await decided(observation)
    if (final?.reason === 'mismatch' && !signal.aborted) throw payloadChanged(decision)
    if (decision.action === 'return') {
      onEnd(decision)
      return last!
    }
    if (final && 'failure' in observation && !signal.aborted) [decision, last] = [final, before]
    else if (decision.reason === 'mismatch' && job.isSameContent && !hasCompared) {
      // The caller says that it is the same, so the response of the first is its response.
      hasCompared = true
      decision = { action: 'ask', after: 0, key: 'keep', executed: 'unknown', reason: 'mismatch' }
    } else if (!final && decision.action === 'throw' && (decision.reason === 'mismatch' ? job.isSameContent !== undefined
      // The machine slept, or was offline: much may have happened meanwhile.
      : decision.reason === 'deadline' && decision.executed !== 'no' && support() !== false && (deadline.isOverslept || deadline.wasOffline))) {
      // One last question: what became of the first?
      onEnd(final = decision)
      maybeExecuted = isStatusQuery = true
      continue
    }
    await act(decision)
  }

  /** Makes one attempt, and reads its response to the last byte. */
  async function once(signal: AbortSignal): Promise<AttemptResult> {
    // `honoured: true` does not tell which preflights are allowed there.
    const isKnown = !isCrossOrigin(origin) || isSupported(origin)
    const headers = { [KEY]: header, prefer: isKnown ? `wait=${final ? 0 : (options.wait ?? WAIT_SECONDS)}` : undefined }
    if (sends > 1 && prepared.readLater) {
      const again = prepared.readLater()
      prepared = { ...prepared, contentType: again.headers.get('content-type') ?? undefined, body: new Uint8Array(await again.arrayBuffer()), readLater: undefined }
    }
    const request = isStatusQuery
      ? statusRequest(prepared.request, endpoint(options, url, 'operation'), headers, signal)
      : attempt(prepared, { ...headers, [FIRST_SENT]: isKnown ? new Date(job.firstSentAt).toUTCString() : undefined }, signal)
    return parseResponse(await transport(options, request), isStatusQuery)
  }
}

/** Returns the members of JSON or a form that look different at each send. */
function volatileFieldsOf({ body }: PreparedRequest): string[] {
  const members = new TextDecoder().decode(body).matchAll(/([\w.-]+)(?:"\s*:\s*"?|=|"\r\n\r\n)([^"&\r,}]*)/g)
  return [...members].filter(([, name, value]) => isVolatile(name!, value!)).map(([, name]) => name!)
}
