/** What became of a request of an earlier page, asked without sending anything that could take effect. */

import type { IdempotentFetch } from './idempotentFetch.js'
import { isForeign } from './origin.js'
import { decide } from './retry.js'
import { endpoint, listen, question } from './send.js'
import { idsOf } from './storage.js'
import { KEY, type Executed, type Problem } from './wire.js'

export type Recalled =
  /** Nothing is open: the next request is the first. */
  | { readonly state: 'none' }
  /** It is running. Ask again after this many milliseconds. */
  | { readonly state: 'in-flight'; readonly after_ms: number }
  /** It was executed, and this is its answer. The key is let go. */
  | { readonly state: 'answered'; readonly response: Response }
  /** It is open, and its answer is not here: sending the same again is safe where keys are honoured. */
  | { readonly state: 'interrupted'; readonly executed: Executed; readonly problem?: Problem | undefined }

const POLL_MS = 1000

export interface RecallOptions {
  readonly signal?: AbortSignal
  /** How long the server may hold the question until there is an answer, in seconds. */
  readonly wait?: number
}

/** What became of the youngest open request of an intent. Asks this page's origin, unless `endpoints` is a URL. */
export async function recall(fetch: IdempotentFetch, intent: string, options: RecallOptions = {}): Promise<Recalled> {
  const looked = await look(fetch, intent, options)
  if (looked.state !== 'answered') return looked
  // Whoever went away has not seen it, and the next one who asks is to.
  options.signal?.throwIfAborted()
  await looked.letGo()
  return { state: 'answered', response: looked.response }
}

/** For adapters: the same, and the key stays until they let it go. */
export async function look(
  { inner: { keys, group, options } }: IdempotentFetch, intent: string, { signal = new AbortController().signal, wait = 0 }: RecallOptions,
): Promise<Exclude<Recalled, { state: 'answered' }> | { readonly state: 'answered'; readonly response: Response; readonly letGo: () => Promise<void> }> {
  // One that was never sent is nothing to ask for.
  const entries = await Promise.all((await idsOf(keys, await group(intent))).map(async (id) => ({ ...(await keys.get(id)), id })))
  const [entry] = entries.filter(({ doubt }) => doubt).sort((a, b) => b.born! - a.born!)
  if (!entry) return { state: 'none' }
  const here = typeof location === 'undefined' ? undefined : location.href
  if (here === undefined && !/^https?:/.test(options.endpoints ?? '')) return { state: 'interrupted', executed: 'unknown' }
  const url = endpoint(options, here ?? options.endpoints!, 'operation')
  const prefer = isForeign(new URL(url).origin) ? {} : { prefer: `wait=${wait}` }
  try {
    const asked = question(new Request(url), url, { ...prefer, [KEY]: JSON.stringify(entry.key) }, signal)
    const response = await (options.fetch ?? fetch)(asked)
    const { heard, problem } = await listen(response, true)
    const decision = decide({ asked: true, honoured: true, doubt: true, left_ms: Infinity }, heard)
    if (decision.do === 'return') return { state: 'answered', response, letGo: () => keys.remove(entry.id) }
    if (decision.because === 'in-flight') {
      return { state: 'in-flight', after_ms: 'after' in decision && decision.after !== 'backoff' ? decision.after : POLL_MS }
    }
    return { state: 'interrupted', executed: decision.executed, problem }
  } catch {
    signal.throwIfAborted()
    return { state: 'interrupted', executed: 'unknown' }
  }
}

/** Lets the keys of an intent go, whatever became of them: the next request of it is another one. */
export async function forget({ inner: { keys, group } }: IdempotentFetch, intent: string): Promise<void> {
  for (const id of await idsOf(keys, await group(intent))) await keys.remove(id)
}
