/** Reads responses, and asks `GET operation` what became of a key. */

import { reasonOf } from './deadline.js'
import type { Options } from './options.js'
import { withHeaders } from './prepare.js'
import { decide, type Observation } from './retry.js'
import { retryAfter } from './retryAfter.js'
import { isCrossOrigin, isSupported, markReached, markSupported } from './serverSupport.js'
import { bufferResponse, type Shared } from './shared.js'
import { KEY, OUTCOME, outcomeOf, type Executed, type Problem } from './wire.js'

export type LookupResult =
  /** Nothing is open: the next request is the first. */
  | { readonly state: 'none' }
  /** It is running. Ask again after this many milliseconds. */
  | { readonly state: 'in-flight'; readonly afterMs: number }
  /** It was executed, and this is its response. */
  | { readonly state: 'answered'; readonly response: Response }
  /** It is open, and its response is not available: sending the same again is safe where keys are supported. */
  | { readonly state: 'interrupted'; readonly executed: Executed; readonly problem?: Problem | undefined }

const POLL_MS = 1000

/** A response, what it says, and the problem in it. */
export interface AttemptResult {
  readonly response: Response
  readonly observation: Extract<Observation, { status: number }>
  readonly problem: Problem | undefined
  /** The same for other tabs, unless it is a stream. */
  readonly shared: Shared | undefined
}

/** Sends with the headers of the options. */
export async function transport(options: Options, request: Request): Promise<Response> {
  const { headers } = options
  const all = headers && new Headers(typeof headers === 'function' ? await headers(request) : headers)
  all?.forEach((value, name) => request.headers.has(name) || request.headers.set(name, value))
  const response = await (options.fetch ?? fetch)(request)
  markReached(new URL(request.url).origin)
  return response
}

/** Reads a response. A truncated one rejects. */
export async function parseResponse(response: Response, isStatusQuery: boolean): Promise<AttemptResult> {
  const outcome = response.headers.get(OUTCOME) ?? undefined
  // A response that is not stored may be a stream without an end.
  const shared = outcome === 'not-stored' && response.ok ? undefined : await bufferResponse(response, outcome !== undefined)
  let problem: Problem | undefined
  // A response of the service is not ours to read, whatever it looks like.
  if (isStatusQuery ? outcome !== 'replayed' : /^application\/problem\+json/.test(response.headers.get('content-type') ?? '')) {
    try { problem = (await response.clone().json()) as Problem } catch { /* it is no JSON */ }
  }
  const retryAfterMs = retryAfter(response.headers.get('retry-after'), Date.now(), response.headers.get('date'))
  const { code, executed, retry } = problem ?? {}
  return { response, observation: { status: response.status, outcome, code, executed, retry, retryAfterMs }, problem, shared }
}

/** Returns the URL of `policy`, `operation` or `keys` of the server of this URL. */
export function endpoint(options: Options, url: string, name: string): string {
  return new URL(`${(options.endpoints ?? '/.idempotency')}/${name}`, url).href
}

/** Makes a request of our own, with the credentials of the request that it is about. */
export function statusRequest(request: Request, url: string, headers: Record<string, string | undefined>, signal: AbortSignal): Request {
  return new Request(url, { headers: withHeaders(request, headers), credentials: request.credentials, signal })
}

/** Asks once what became of a key. `request`: its headers and credentials are used. */
export async function queryStatus(options: Options, request: Request, url: string, key: string, wait: number, signal: AbortSignal): Promise<LookupResult> {
  const target = endpoint(options, url, 'operation')
  const { origin } = new URL(target)
  const prefer = isCrossOrigin(origin) && !isSupported(origin) ? undefined : `wait=${wait}`
  try {
    const { response, observation, problem } = await parseResponse(
      await transport(options, statusRequest(request, target, { prefer, [KEY]: key }, signal)), true)
    if (outcomeOf(observation.outcome)) markSupported(origin)
    const decision = decide({ isStatusQuery: true, supportsKeys: true, maybeExecuted: true, remainingMs: Infinity }, observation)
    if (decision.action === 'return') return { state: 'answered', response }
    if (decision.reason === 'in-flight') {
      return { state: 'in-flight', afterMs: 'after' in decision && decision.after !== 'backoff' ? decision.after : POLL_MS }
    }
    // A 404 says only that this caller has no such key here: another caller or server may.
    return { state: 'interrupted', executed: decision.executed, problem: response.status === 404 ? undefined : problem }
  } catch {
    if (signal.aborted) throw reasonOf(signal)
    return { state: 'interrupted', executed: 'unknown' }
  }
}
