/** `fetch` that takes effect once: it finds the key of an intent, sends until it is settled, and lets the key go. */

import { digest as digestOf, encode } from './digest.js'
import { newKey } from './key.js'
import type { IdempotentInit, Options } from './options.js'
import { isHonoured } from './origin.js'
import { Deadline, follow } from './patience.js'
import { prepare, type Prepared } from './prepare.js'
import type { Decision } from './retry.js'
import { DEADLINE_MS, send } from './send.js'
import { sharedError, type Shared } from './shared.js'
import { keysIn, memoryStorage, webStorage, type Keys } from './storage.js'
import { turn } from './tabs.js'
import { KEY } from './wire.js'

export interface IdempotentFetch {
  /** As `fetch`; rejects with an `OncewardError` where nobody can say that it took effect once. */
  (input: RequestInfo | URL, init?: IdempotentInit): Promise<Response>
  /** Lets the keys of an intent go, whatever became of them: the next request of it is another one. */
  forget(intent: string, user?: string): Promise<void>
  /** For adapters. */
  readonly inner: Inner
}

/** What adapters build on. */
export interface Inner {
  readonly options: Options
  readonly keys: Keys
  readonly user: (user?: string) => string
  /** Names the open keys of a user's intent. */
  readonly group: (intent: string, user?: string) => Promise<string>
  /** Names the key of one payload in such a group. */
  readonly id: (group: string, digest: string) => string
}

/** For adapters: also says when the key may go, instead of letting it go. */
export interface AdapterInit extends IdempotentInit {
  readonly onSettled?: (decision: Decision, letGo: () => Promise<void>) => void
}

/** All who wait for one request of this page: a double click is one intent. */
interface Shop {
  readonly customers: Set<{ give: (response: Response) => void; fail: (error: unknown) => void }>
  readonly stop: AbortController
}

interface Wanted {
  readonly prepared: Prepared
  readonly init: AdapterInit
  readonly intent: string
  readonly digest: string
  readonly id: string
  /** The header as the caller gave it. */
  readonly given: string | null
  readonly signal: AbortSignal
}

/** A fetch with its settings bound. Make one for the page, and hand it to whoever sends. */
export function createIdempotentFetch(options: Options = {}): IdempotentFetch {
  const { storage = typeof document === 'undefined' ? 'memory' : 'session' } = options
  const place = typeof storage === 'object' ? storage : storage === 'memory' ? memoryStorage() : webStorage(storage)
  const keys = keysIn(place, options.onWarning ?? ((message) => console.warn(`onceward: ${message}`)))
  const shops = new Map<string, Shop>()
  const inner: Inner = {
    options,
    keys,
    user: (user = typeof options.user === 'function' ? options.user() : options.user) => user ?? '',
    group: async (intent, user) => (await digestOf(encode(JSON.stringify([inner.user(user), intent])))).slice(0, 24),
    id: (group, digest) => `${group}:${digest.slice(0, 32)}`,
  }

  const idempotentFetch = async (input: RequestInfo | URL, init: AdapterInit = {}): Promise<Response> => {
    const request = new Request(input, init)
    const given = request.headers.get(KEY)
    if (init.intent === undefined && given === null && !(options.methods ?? ['POST', 'PATCH']).includes(request.method)) {
      return (options.fetch ?? fetch)(request)
    }
    request.signal.throwIfAborted()
    const prepared = await prepare(request)
    const digest = init.payload === undefined ? prepared.digest : await digestOf(encode(init.payload))
    const intent = init.intent ?? `${request.method} ${prepared.url} ${digest.slice(0, 16)}`
    const id = given === null ? inner.id(await inner.group(intent, init.user), digest) : await digestOf(encode(given + digest))

    let shop = shops.get(id)
    if (!shop) {
      const opened = (shop = { customers: new Set(), stop: new AbortController() })
      shops.set(id, opened)
      const close = () => {
        if (shops.get(id) === opened) shops.delete(id)
        return [...opened.customers]
      }
      void once({ prepared, init, intent, digest, id, given, signal: opened.stop.signal }).then(
        // Each gets one of its own, and the last the original, so that no copy is left to be filled unread.
        (response) => close().forEach(({ give }, i, all) => give(i < all.length - 1 ? response.clone() : response)),
        (error: unknown) => close().forEach(({ fail }) => fail(error)),
      )
    }
    return join(shop, request.signal, () => shops.delete(id))
  }

  /** One request of an intent, in turn with those of other tabs. */
  async function once({ prepared, init, intent, digest, id, given, signal }: Wanted): Promise<Response> {
    const mine = await turn(id, signal)
    if (mine instanceof Response) return mine
    let result: Shared | undefined
    try {
      const deadline = new Deadline(init.deadline ?? options.deadline ?? DEADLINE_MS)
      const found = given === null ? await keys.get(id) : undefined
      // A key of ours that was never sent gives way to the one that another tab sent for the same.
      const key = given ?? (found?.doubt ? found.key : (mine.theirKey ?? found?.key)) ??
        (await (options.keys ?? newKey)({ prepared, init, intent, user: inner.user(init.user), options, deadline, signal }))
      const born = found?.born ?? Date.now()
      const note = async (doubt: boolean) => given === null && keys.put(id, { key, intent, digest, born, doubt })
      await note(true)
      await mine.announce?.(key)
      let ended: Decision | undefined
      const errand = {
        prepared, key, given, intent, born, deadline, signal, onAttempt: init.onAttempt,
        doubt: found?.doubt === true || mine.theirKey !== undefined,
      }
      try {
        const settled = await send(errand, options, (decision) => (ended = decision))
        result = settled.shared
        return settled.response
      } catch (error) {
        result = sharedError(error)
        throw error
      } finally {
        if (ended && init.onSettled) init.onSettled(ended, () => keys.remove(id))
        else if (ended?.key === 'drop') await keys.remove(id)
        // Whoever saw an answer and sends again means it: only where keys are honoured does the doubt last.
        else if (ended?.executed === 'no' || (ended?.do === 'return' && !isHonoured(prepared.origin, options))) await note(false)
      }
    } finally {
      mine.done?.(result)
    }
  }

  return Object.assign(idempotentFetch, {
    inner,
    forget: async (intent: string, user?: string) => {
      for (const id of await keys.ids(await inner.group(intent, user))) await keys.remove(id)
    },
  })
}

/** The answer of a request that others may wait for too: who gives up leaves, and the last one to leave stops it. */
function join({ customers, stop }: Shop, signal: AbortSignal, close: () => void): Promise<Response> {
  return new Promise((resolve, reject) => {
    const leave = follow(signal, () => {
      customers.delete(customer)
      if (customers.size === 0) {
        close()
        stop.abort(signal.reason)
      }
      reject(signal.reason as Error)
    })
    const customer = {
      give: (response: Response) => (leave(), resolve(response)),
      fail: (error: unknown) => (leave(), reject(error as Error)),
    }
    customers.add(customer)
  })
}
