/** `fetch` that takes effect once: it finds the key of an intent, sends until it is settled, and lets the key go. */

import { digest as digestOf, encode } from './digest.js'
import { newKey } from './key.js'
import type { IdempotentInit, Options } from './options.js'
import { isHonoured } from './origin.js'
import { Deadline, follow } from './patience.js'
import { prepare } from './prepare.js'
import type { Decision } from './retry.js'
import { DEADLINE_MS, send } from './send.js'
import type { Shared } from './shared.js'
import { keysIn, memoryStorage, webStorage, type Keys } from './storage.js'
import { turn } from './tabs.js'
import { KEY } from './wire.js'

export interface IdempotentFetch {
  /** As `fetch`; rejects with an `OncewardError` where nobody can say that it took effect once. */
  (input: RequestInfo | URL, init?: IdempotentInit): Promise<Response>
  /** For adapters. */
  readonly inner: Inner
}

/** What adapters build on. */
export interface Inner {
  readonly options: Options
  readonly keys: Keys
  readonly user: () => string
  /** Names the open keys of the user's intent. */
  readonly group: (intent: string) => Promise<string>
  /** Names the key of one payload of it. */
  readonly id: (intent: string, digest: string) => Promise<string>
}

/** For adapters: is called when the key may go, instead of letting it go. */
export interface AdapterInit extends IdempotentInit {
  readonly onSettled?: (letGo: () => Promise<void>) => void | Promise<void>
}

/** One request of this page, and how many wait for it: a double click is one intent. */
interface Shop {
  readonly answer: Promise<Response>
  readonly stop: AbortController
  customers: number
}

/** A fetch with its settings bound. Make one for the page, and hand it to whoever sends. */
export function createIdempotentFetch(options: Options = {}): IdempotentFetch {
  const { storage = globalThis.document ? 'session' : 'memory' } = options
  const place = typeof storage === 'object' ? storage : storage === 'memory' ? memoryStorage() : webStorage(storage)
  const keys = keysIn(place, options.onWarning ?? console.warn)
  const shops = new Map<string, Shop>()
  const inner: Inner = {
    options,
    keys,
    user: () => (typeof options.user === 'function' ? options.user() : options.user) ?? '',
    group: (intent) => digestOf(encode(JSON.stringify([inner.user(), intent]))),
    id: async (intent, digest) => `${await inner.group(intent)}:${digest}`,
  }

  const idempotentFetch = async (input: RequestInfo | URL, init: AdapterInit = {}): Promise<Response> => {
    const request = new Request(input, init)
    const given = request.headers.get(KEY)
    if (init.intent === undefined && given === null && !/^(POST|PATCH)$/.test(request.method)) {
      return (options.fetch ?? fetch)(request)
    }
    request.signal.throwIfAborted()
    const prepared = await prepare(request)
    const digest = init.payload === undefined ? prepared.digest : await digestOf(encode(init.payload))
    const intent = init.intent ?? `${request.method} ${prepared.url}`
    const id = await inner.id(given ?? intent, digest)

    const shop = shops.get(id) ?? open()
    return join(shop, request.signal, () => shops.delete(id))

    function open(): Shop {
      const stop = new AbortController()
      const answer = once(stop.signal).finally(() => shops.get(id) === shop && shops.delete(id))
      const shop = { answer, stop, customers: 0 }
      shops.set(id, shop)
      return shop
    }

    /** One request of an intent, in turn with those of other tabs. */
    async function once(signal: AbortSignal): Promise<Response> {
      // What was open when this was asked for is the same intent, even if another tab settles it before our turn.
      const before = await keys.get(id)
      const mine = await turn(id, signal)
      const letGo = () => keys.remove(id)
      const settle = init.onSettled ?? ((letGo) => letGo())
      if (mine instanceof Response) {
        // A tab that is a copy of the sender has a copy of its key.
        await settle(letGo)
        return mine
      }
      let result: Shared | undefined
      try {
        const deadline = new Deadline(init.deadline ?? options.deadline ?? DEADLINE_MS)
        const found = (await keys.get(id)) ?? before
        // A key of ours that was never sent gives way to the one that another tab sent for the same.
        const key = given ?? (found?.doubt ? found.key : (mine.theirKey ?? found?.key)) ??
          (await (options.keys ?? newKey)({ prepared, init, intent, user: inner.user(), options, deadline, signal }))
        const born = found?.born ?? Date.now()
        const note = (doubt: boolean) => keys.put(id, { key, intent, digest, born, doubt })
        await note(true)
        await mine.announce?.(key)
        let ended: Decision | undefined
        const doubt = found?.doubt || mine.theirKey !== undefined
        try {
          const told = await send({ prepared, key, isGiven: given !== null, intent, born, deadline, signal, doubt }, options, (decision) => (ended = decision))
          // Another is what one tab saw, and others may ask again.
          if (ended!.key === 'drop') result = told.shared
          return told.response
        } finally {
          if (ended?.key === 'drop') await settle(letGo)
          // Whoever saw an answer and sends again means it: only where keys are honoured does the doubt last.
          else if (ended?.executed === 'no' || (ended?.do === 'return' && !isHonoured(prepared.origin, options))) await note(false)
        }
      } finally {
        mine.done?.(result)
      }
    }
  }

  return Object.assign(idempotentFetch, { inner })
}

/** The answer of a request that others may wait for too: who gives up leaves, and the last one to leave stops it. */
async function join(shop: Shop, signal: AbortSignal, close: () => void): Promise<Response> {
  shop.customers += 1
  let leave: (() => void) | undefined
  try {
    const gaveUp = new Promise<never>((_, reject) => {
      leave = follow(signal, () => {
        shop.customers -= 1
        reject(signal.reason as Error)
        if (shop.customers > 0) return
        close()
        shop.stop.abort(signal.reason)
      })
    })
    const response = await Promise.race([shop.answer, gaveUp])
    // Each gets one of its own; who is alone gets the original, so that no copy is left to be filled unread.
    return shop.customers > 1 ? response.clone() : response
  } finally {
    leave!()
  }
}
