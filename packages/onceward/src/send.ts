/** Sends until it is settled, one key throughout. */

import { errorOf } from './errors.js'
import type { Attempt, Options } from './options.js'
import { check, isForeign, isHonoured, learn } from './origin.js'
import { follow, sleep, type Deadline } from './patience.js'
import { attempt, withHeaders, type Prepared } from './prepare.js'
import { backoff, decide, type Decision, type Heard } from './retry.js'
import { retryAfter } from './retryAfter.js'
import { whole, type Shared } from './shared.js'
import { FIRST_SENT, KEY, OUTCOME, outcomeOf, type Problem } from './wire.js'

/** What is sent, under which key. */
export interface Errand {
  readonly prepared: Prepared
  readonly key: string
  /** The header as the caller gave it. */
  readonly given: string | null
  readonly intent: string
  /** When the intent was born. */
  readonly born: number
  /** Whether the key was sent before, by an earlier page or another tab. */
  readonly doubt: boolean
  readonly deadline: Deadline
  /** Aborts when nobody wants the answer any longer. */
  readonly signal: AbortSignal
  readonly onAttempt: ((attempt: Attempt) => void) | undefined
}

export interface Settled {
  readonly response: Response
  readonly decision: Decision
  /** The same for other tabs, where it is no stream. */
  readonly shared: Shared | undefined
}

export const DEADLINE_MS = 60_000
const ATTEMPT_MS_MAX = 25_000
export const WAIT_SECONDS = 10

/** What a response says, and the problem in it. */
export interface Told {
  readonly heard: Heard
  readonly problem: Problem | undefined
  readonly shared: Shared | undefined
}

/** Rejects with an {@link OncewardError}, or with the signal's reason; its decision is then in `onEnd`. */
export async function send(errand: Errand, options: Options, onEnd: (decision: Decision) => void): Promise<Settled> {
  const { prepared, key, intent, deadline, signal } = errand
  const { url, origin } = prepared
  const fetch = options.fetch ?? globalThis.fetch
  const honoured = () => isHonoured(origin, options)
  let { doubt } = errand
  let sends = 0
  let isAsking = false
  let isNotHonoured = false
  let last: { response: Response; told: Told } | undefined
  let cause: unknown

  const end = (decision: Decision & { do: 'throw' }): never => {
    onEnd(decision)
    if (decision.error === 'AbortError') throw signal.reason
    const more = decision.because === 'not-honoured'
      ? `, and ${origin} is not known to honour keys. Look whether it took effect; to send it anew, forget its intent` : ''
    const { executed } = decision
    throw errorOf(decision.error, { executed, intent, problem: last?.told.problem, response: last?.response, cause }, more)
  }
  const judge = (heard: Heard): Decision =>
    decide({ asked: isAsking, honoured: isNotHonoured ? false : honoured(), doubt, left_ms: deadline.left_ms }, heard)
  /** Finds out whether keys are honoured here, until that is said or the deadline comes. */
  const checked = async (heard: Heard): Promise<Decision> => {
    for (let tries = 1; ; tries++) {
      const decision = judge(heard)
      if (decision.do !== 'check') return decision
      const said = await check(origin, endpoint(options, url, 'policy'), fetch, signal)
      if (said === false) isNotHonoured = true
      if (said === undefined) await pause(Math.min(backoff(tries, Math.random()), deadline.left_ms))
    }
  }
  const pause = async (ms: number) => {
    await sleep(ms, signal)
    await deadline.online(signal)
  }

  try {
    if (doubt) {
      // The first send of this page is a resend of the key.
      const decision = await checked({ failure: 'network' })
      if (decision.do === 'throw') end(decision)
    }
    for (;;) {
      if (!isAsking) sends += 1
      let heard: Heard
      try {
        last = undefined
        const response = await once()
        const told = await listen(response, isAsking)
        last = { response, told }
        heard = told.heard
        if (outcomeOf('status' in heard ? heard.outcome : undefined)) learn(origin, true)
      } catch (error) {
        cause = error
        heard = { failure: signal.aborted ? 'aborted' : error === TOO_LONG ? 'timeout' : 'network' }
      }
      let decision = judge(heard)
      observe(heard, decision)
      if (decision.do === 'check') decision = await checked(heard)
      if (decision.executed !== 'no') doubt = true
      switch (decision.do) {
        case 'return':
          onEnd(decision)
          return { response: last!.response, decision, shared: last!.told.shared }
        case 'throw':
          end(decision)
          break
        case 'resend':
        case 'ask':
          await pause(decision.after === 'backoff' ? backoff(sends, Math.random()) : decision.after)
          isAsking = decision.do === 'ask'
      }
    }
  } catch (error) {
    if (signal.aborted) onEnd({ do: 'throw', error: 'AbortError', key: 'keep', executed: 'unknown', because: 'aborted' })
    throw error
  }

  async function once(): Promise<Response> {
    const stop = new AbortController()
    const leave = follow(signal, () => stop.abort(signal.reason))
    // Where keys are not known to be honoured nothing may be sent again, so all the time there is is this attempt's.
    const patience = honoured() ? Math.min(options.attemptTimeout ?? ATTEMPT_MS_MAX, deadline.left_ms) : deadline.left_ms
    const timer = setTimeout(() => stop.abort(TOO_LONG), patience)
    try {
      const known = !isForeign(origin) || honoured()
      const headers = {
        ...headersOf(options),
        [KEY]: errand.given ?? JSON.stringify(key),
        prefer: known ? `wait=${options.wait ?? WAIT_SECONDS}` : undefined,
      }
      if (isAsking) return await fetch(question(prepared.request, endpoint(options, url, 'operation'), headers, stop.signal))
      const born = known ? new Date(errand.born).toUTCString() : undefined
      return await fetch(attempt(prepared, { ...headers, [FIRST_SENT]: born }, stop.signal))
    } catch (error) {
      throw stop.signal.aborted ? stop.signal.reason : error
    } finally {
      clearTimeout(timer)
      leave()
    }
  }

  function observe(heard: Heard, decision: Decision): void {
    const kind = isAsking ? 'ask' : 'send'
    const about = 'failure' in heard ? { failure: heard.failure } : { status: heard.status, outcome: heard.outcome }
    for (const listener of [options.onAttempt, errand.onAttempt]) listener?.({ intent, key, sends, kind, decision, ...about })
  }
}

const TOO_LONG = new Error('the attempt took too long')

/** Reads what a response says. An answer that is cut in its middle rejects. */
export async function listen(response: Response, asked: boolean): Promise<Told> {
  const outcome = response.headers.get(OUTCOME) ?? undefined
  // What is not kept may be a stream without an end.
  const shared = outcome === 'not-stored' && response.ok ? undefined : await whole(response, outcome !== undefined)
  let problem: Problem | undefined
  const kind = response.headers.get('content-type') ?? ''
  if (/^application\/problem\+json/.test(kind) || (asked && outcome !== 'replayed' && /^application\/json/.test(kind))) {
    try { problem = (await response.clone().json()) as Problem } catch { /* not what it says it is */ }
  }
  const after = retryAfter(response.headers.get('retry-after'), Date.now(), response.headers.get('date'))
  const { code, executed, retry } = problem ?? {}
  return { heard: { status: response.status, outcome, code, executed, retry, retry_after_ms: after }, problem, shared }
}

/** The headers that are bound. */
export const headersOf = ({ headers }: Options) => Object.fromEntries(new Headers(typeof headers === 'function' ? headers() : headers))

/** `policy`, `operation` or `keys` of the server of this URL. */
export function endpoint(options: Options, url: string, name: string): string {
  return new URL(`${(options.endpoints ?? '/.idempotency').replace(/\/$/, '')}/${name}`, url).href
}

/** A question of our own, with the credentials of the request that it is about. */
export function question(request: Request, url: string, headers: Record<string, string | undefined>, signal: AbortSignal): Request {
  return new Request(url, { headers: withHeaders(request, headers), credentials: request.credentials, signal })
}
