/** `fetch` that takes effect once: finds the key of an intent, sends until its outcome is known, and releases the key. */

import { Deadline, throwIfAborted, TIMED_OUT, withTimeout } from './deadline.js'
import { digest as digestOf, encode } from './digest.js'
import { errorOf } from './errors.js'
import { newKey } from './key.js'
import type { IdempotentInit, Options } from './options.js'
import { prepare } from './prepare.js'
import type { Decision } from './retry.js'
import { DEADLINE_MS, send, type RawProgress } from './send.js'
import { isCrossOrigin, supportsKeys } from './serverSupport.js'
import { sha256 } from './sha256.js'
import type { Shared } from './shared.js'
import { transport } from './status.js'
import { Keys, namedId, type Entry } from './storage.js'
import { acquireSendLock, type SendLock } from './tabs.js'
import { watchPage } from './visibility.js'
import { KEY } from './wire.js'

/** As `fetch`; rejects with an `OncewardError` where it is not known to have taken effect once. */
export type IdempotentFetch = (input: RequestInfo | URL, init?: IdempotentInit) => Promise<Response>

/** State that adapters share with their fetch. */
export interface Internals {
  readonly options: Options
  readonly keys: Keys
  /** Id of the user's intent. */
  readonly group: (intent: string) => string
}

const internals = new WeakMap<IdempotentFetch, Internals>()

export function internalsOf(fetch: IdempotentFetch): Internals {
  const found = internals.get(fetch)
  if (!found) throw new TypeError('onceward: this fetch is not from createIdempotentFetch')
  return found
}

/** Options of adapters. */
export interface AdapterInit extends IdempotentInit {
  /** Called with the release of the key when its end is known, instead of releasing it. */
  readonly onSettled?: (release: () => Promise<unknown>) => unknown
  readonly onProgress?: (progress: RawProgress) => void
}

/** One request of this page, and how many callers await it: a double click is one intent. */
interface InFlight {
  readonly digest: string
  readonly response: Promise<Response>
  readonly stop: AbortController
  subscribers: number
}

/** Makes a fetch with these settings. Make one for the page, and use it everywhere. */
export function createIdempotentFetch(options: Options = {}): IdempotentFetch {
  const keys = new Keys(options.storage ?? (globalThis.document ? 'session' : 'memory'), options.onWarning ?? console.warn)
  const inFlight = new Map<string, InFlight>()
  const userOf = () => (typeof options.user === 'function' ? options.user() : options.user) ?? ''
  const group = (intent: string) => sha256(JSON.stringify([userOf(), intent]))

  const idempotentFetch = async (input: RequestInfo | URL, init: AdapterInit = {}): Promise<Response> => {
    const method = init.method ?? (input as Partial<Request>).method ?? ''
    // `fetch` sends it as typed, and some servers execute it.
    const request = new Request(input, /^patch$/i.test(method) ? { ...init, method: 'PATCH' } : init)
    const given = request.headers.get(KEY)
    if (init.intent === undefined && given === null && !/^(POST|PATCH)$/.test(request.method)) return transport(options, request)
    throwIfAborted(request.signal)
    const wasLeft = watchPage()
    const prepared = await prepare(request, init.body)
    const digest = init.payload === undefined ? prepared.digest : await digestOf(encode(init.payload))
    const intent = init.intent ?? `${request.method} ${prepared.url}`
    const isNamed = given === null && init.intent !== undefined
    const groupId = group(given ?? intent)
    const id = isNamed ? namedId(groupId) : `${groupId}:${digest}`

    let running = inFlight.get(id)
    while (running && running.digest !== digest && !request.keepalive) {
      const { response } = running
      // Other content under the same name: the server decides, once the first is settled.
      await withTimeout(Infinity, request.signal, () => response.catch(() => undefined))
      running = inFlight.get(id)
    }
    return subscribe(running?.digest === digest ? running : start(), request.signal, () => inFlight.delete(id))

    function start(): InFlight {
      const stop = new AbortController()
      const response = run(stop.signal).finally(() => inFlight.get(id) === it && inFlight.delete(id))
      const it: InFlight = { digest, response, stop, subscribers: 0 }
      inFlight.set(id, it)
      return it
    }

    /** Runs one request of an intent, one at a time with those of other tabs. */
    async function run(signal: AbortSignal): Promise<Response> {
      const ms = init.deadline ?? options.deadline
      const deadline = new Deadline(ms ?? DEADLINE_MS)
      // Names of older versions have an entry for each content.
      const find = async () => (await keys.get(id)) ?? (isNamed ? (await keys.youngest(groupId))?.[1] : undefined)
      // What was open at the call is the same intent, even if another tab settles it before our turn.
      const before = await find()
      const release = async (finish: () => Promise<unknown>) => (init.onSettled ?? ((it) => it()))(finish)
      let lock: SendLock | Response = {}
      if (!request.keepalive) {
        try {
          lock = await withTimeout(deadline.remainingMs, signal, (signal) => acquireSendLock(id, digest, signal))
        } catch (error) {
          throw error === TIMED_OUT ? errorOf('InFlightError', { executed: 'unknown', intent }, ': another tab is sending it') : error
        }
      }
      if (lock instanceof Response) {
        // A tab that is a copy of the sender has a copy of its key.
        await release(async () => isNamed || keys.remove(id))
        return lock
      }
      let result: Shared | undefined
      try {
        const found = (await find()) ?? before
        const wasSent = found?.maybeExecuted
        // A key of ours that was never sent gives way to the one that another tab sent for the same.
        const key = given ?? (wasSent ? found!.key : (lock.leaderKey ?? found?.key)) ??
          (await (options.keys ?? newKey)({ prepared, init, intent, user: userOf(), options, deadline, signal }))
        const maybeExecuted = !!wasSent || lock.leaderKey !== undefined
        const { origin } = prepared
        const entry: Entry = {
          key, intent, digest: wasSent ? found!.digest : digest, firstSentAt: found?.firstSentAt ?? Date.now(), maybeExecuted: true,
          end: found?.end, repeatable: init.repeatable || undefined, origin: globalThis.location && !isCrossOrigin(origin) ? undefined : origin,
        }
        await keys.put(id, entry)
        await lock.announce?.(key)
        if (!request.keepalive && wasLeft()) {
          await keys.put(id, { ...entry, maybeExecuted })
          throw errorOf(maybeExecuted ? 'OutcomeUnknownError' : 'NotSentError', { executed: maybeExecuted ? 'unknown' : 'no', intent }, ': the page was left before it began: use keepalive')
        }
        let ended: Decision | undefined
        try {
          const isSameContent = isNamed || (given === null && init.payload !== undefined) ? init.payload !== undefined && entry.digest === digest : undefined
          const sent = await send({
            prepared, key, isGiven: given !== null, intent, firstSentAt: entry.firstSentAt, deadline, isDefaultDeadline: ms === undefined, signal, maybeExecuted, isSameContent,
            onProgress: init.onProgress,
          }, options, (decision) => (ended = decision))
          // Another decision is what one tab saw, and others may ask again.
          if (ended!.key === 'drop') result = sent.shared
          return sent.response
        } finally {
          const { action, executed, reason, key: verdict } = ended ?? {}
          if (verdict === 'drop' && executed !== 'no') await release(() => keys.finish(id, { ...entry, digest }))
          else if (verdict === 'drop' && (!isNamed || reason === 'refused')) await release(() => keys.remove(id))
          // A caller that saw a response and sends again means it: only where keys are supported it stays open.
          else if (executed === 'no' || (action === 'return' && !supportsKeys(origin, options))) await keys.put(id, { ...entry, digest, maybeExecuted: false })
        }
      } finally {
        lock.done?.(result)
      }
    }
  }

  internals.set(idempotentFetch, { options, keys, group })
  return idempotentFetch
}

/** Awaits a request that others may await too. The last subscriber that aborts stops it. */
async function subscribe(it: InFlight, signal: AbortSignal, close: () => void): Promise<Response> {
  it.subscribers += 1
  try {
    const response = await withTimeout(Infinity, signal, () => it.response)
    // Each of several gets a copy; a single subscriber gets the original, so that no copy is left unread.
    return it.subscribers > 1 ? response.clone() : response
  } catch (error) {
    if (signal.aborted && --it.subscribers === 0) {
      close()
      it.stop.abort(error)
    }
    throw error
  }
}
