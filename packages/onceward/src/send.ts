/** Sends until it is settled, one key throughout. */

import { errorOf } from './errors.js'
import type { Options } from './options.js'
import { check, isForeign, isHonoured, isKnown, learn } from './origin.js'
import { sleep, TOO_LONG, within, type Deadline } from './patience.js'
import { attempt, withHeaders, type Prepared } from './prepare.js'
import { backoff, decide, type Decision, type Heard } from './retry.js'
import { retryAfter } from './retryAfter.js'
import { whole, type Shared } from './shared.js'
import { FIRST_SENT, KEY, OUTCOME, outcomeOf, type Problem } from './wire.js'

/** What is sent, under which key. */
export interface Errand {
  readonly prepared: Prepared
  readonly key: string
  /** Whether the caller gave it, as it is to stand in the header. */
  readonly isGiven: boolean
  readonly intent: string
  /** When the intent was born. */
  readonly born: number
  /** Whether the key was sent before, by an earlier page or another tab. */
  readonly doubt: boolean
  readonly deadline: Deadline
  /** Aborts when nobody wants the answer any longer. */
  readonly signal: AbortSignal
}

export const DEADLINE_MS = 60_000
export const ATTEMPT_MS_MAX = 25_000
export const WAIT_SECONDS = 10

/** What a response says, and the problem in it. */
export interface Told {
  readonly response: Response
  readonly heard: Extract<Heard, { status: number }>
  readonly problem: Problem | undefined
  /** The same for other tabs, where it is no stream. */
  readonly shared: Shared | undefined
}

/** Rejects with an {@link OncewardError}, or with the signal's reason; its decision is then in `onEnd`. */
export async function send(errand: Errand, options: Options, onEnd: (decision: Decision) => void): Promise<Told> {
  const { prepared, key, intent, deadline, signal } = errand
  const { url, origin } = prepared
  const fetch = options.fetch ?? globalThis.fetch
  const honoured = () => isHonoured(origin, options)
  let { doubt } = errand
  let sends = 0
  let asked = false
  /** Where it was found out that keys are not honoured. */
  let refuted: false | undefined
  let last: Told | undefined
  let cause: unknown

  const judge = (heard: Heard): Decision =>
    decide({ asked, honoured: refuted ?? honoured(), doubt, left_ms: deadline.left_ms }, heard)
  /** What to do after what was heard, and after finding out whether keys are honoured here, if it comes to that. */
  const decided = async (heard: Heard): Promise<Decision> => {
    for (let tries = 1; ; tries++) {
      const decision = judge(heard)
      if (decision.do !== 'check') return decision
      const said = await within(patience(), signal, (signal) => check(origin, fetch(new Request(endpoint(options, url, 'policy'), { signal }))))
      if (said === false) refuted = said
      if (said === undefined) await pause(Math.min(backoff(tries, Math.random()), deadline.left_ms))
    }
  }
  const patience = () => Math.min(options.attemptTimeout ?? ATTEMPT_MS_MAX, deadline.left_ms)
  const pause = async (ms: number) => {
    await sleep(ms, signal)
    await deadline.online(signal)
  }
  const act = async (decision: Decision): Promise<void> => {
    if (decision.executed !== 'no') doubt = true
    if (decision.do === 'throw') {
      onEnd(decision)
      if (decision.error === 'AbortError') throw signal.reason
      const { executed } = decision
      // Whoever has looked can `forget` the intent, and send it anew.
      const more = decision.because === 'not-honoured' ? `; ${origin} is not known to honour keys: look whether it took effect` : ''
      throw errorOf(decision.error, { executed, intent, problem: last?.problem, response: last?.response, cause }, more)
    }
    if ('after' in decision) {
      await pause(decision.after === 'backoff' ? backoff(sends, Math.random()) : decision.after)
      asked = decision.do === 'ask'
    }
  }

  // The first send of this page may be a resend of the key.
  if (doubt) {
    const decision = await decided({ failure: 'network' })
    if (decision.do === 'throw') await act(decision)
  }
  for (;;) {
    if (!asked) sends += 1
    let heard: Heard
    last = undefined
    try {
      // Where keys are not known to be honoured nothing may be sent again, so all the time there is is this attempt's.
      last = await within(honoured() ? patience() : deadline.left_ms, signal, once)
      heard = last.heard
      if (outcomeOf(last.heard.outcome)) learn(origin)
    } catch (error) {
      cause = error
      heard = { failure: signal.aborted ? 'aborted' : error === TOO_LONG ? 'timeout' : 'network' }
    }
    options.onAttempt?.({ intent, key, sends, asked, heard, decision: judge(heard) })
    const decision = await decided(heard)
    if (decision.do === 'return') {
      onEnd(decision)
      return last!
    }
    await act(decision)
  }

  /** One attempt, to the last byte of its answer. */
  async function once(signal: AbortSignal): Promise<Told> {
    // Told that keys are honoured, we still do not know what preflights are answered there.
    const known = !isForeign(origin) || isKnown(origin)
    const headers = {
      [KEY]: errand.isGiven ? key : JSON.stringify(key),
      prefer: known ? `wait=${options.wait ?? WAIT_SECONDS}` : undefined,
    }
    const request = asked
      ? question(prepared.request, endpoint(options, url, 'operation'), headers, signal)
      : attempt(prepared, { ...headers, [FIRST_SENT]: known ? new Date(errand.born).toUTCString() : undefined }, signal)
    return listen(await fetch(request), asked)
  }
}

/** Reads what a response says. An answer that is cut in its middle rejects. */
export async function listen(response: Response, asked: boolean): Promise<Told> {
  const outcome = response.headers.get(OUTCOME) ?? undefined
  // What is not kept may be a stream without an end.
  const shared = outcome === 'not-stored' && response.ok ? undefined : await whole(response, outcome !== undefined)
  let problem: Problem | undefined
  // An answer of the service is not ours to read, whatever it looks like.
  if (asked ? outcome !== 'replayed' : /^application\/problem\+json/.test(response.headers.get('content-type') ?? '')) {
    try { problem = (await response.clone().json()) as Problem } catch { /* not what it says it is */ }
  }
  const after = retryAfter(response.headers.get('retry-after'), Date.now(), response.headers.get('date'))
  const { code, executed, retry } = problem ?? {}
  return { response, heard: { status: response.status, outcome, code, executed, retry, retry_after_ms: after }, problem, shared }
}

/** `policy`, `operation` or `keys` of the server of this URL. */
export function endpoint(options: Options, url: string, name: string): string {
  return new URL(`${(options.endpoints ?? '/.idempotency')}/${name}`, url).href
}

/** A question of our own, with the credentials of the request that it is about. */
export function question(request: Request, url: string, headers: Record<string, string | undefined>, signal: AbortSignal): Request {
  return new Request(url, { headers: withHeaders(request, headers), credentials: request.credentials, signal })
}
