/** Finds out what became of an earlier request, without sending anything that could take effect. */

import { internalsOf, type IdempotentFetch } from './idempotentFetch.js'
import { throwIfAborted } from './deadline.js'
import { queryStatus, type LookupResult } from './status.js'

export interface LookupOptions {
  readonly signal?: AbortSignal
  /** How long the server may hold the question until there is a response, in seconds. */
  readonly wait?: number
}

/** Returns what became of the youngest open or ended request of an intent. Asks the origin that it was sent to. */
export async function lookup(fetch: IdempotentFetch, intent: string, options: LookupOptions = {}): Promise<LookupResult> {
  const found = await lookupInternal(fetch, intent, options)
  if (found.state !== 'answered') return found
  // A caller that went away has not seen it: the next one gets it.
  throwIfAborted(options.signal)
  await found.release()
  return { state: 'answered', response: found.response }
}

/** The same for adapters: a delivered end is to be released. */
export async function lookupInternal(
  fetch: IdempotentFetch, intent: string, { signal = new AbortController().signal, wait = 0 }: LookupOptions,
): Promise<Exclude<LookupResult, { state: 'answered' }> | { readonly state: 'answered'; readonly response: Response; readonly release: () => Promise<void> }> {
  const { options, keys, group } = internalsOf(fetch)
  // A key that was never sent is nothing to ask for.
  const found = await keys.youngest(group(intent))
  if (!found) return { state: 'none' }
  const [id, entry] = found
  const base = entry.origin ?? globalThis.location?.href ?? options.endpoints
  if (!/^https?:/.test(base ?? '')) return { state: 'interrupted', executed: entry.end ? 'yes' : 'unknown' }
  const result = await queryStatus(options, new Request(base!), base!, JSON.stringify(entry.key), wait, signal)
  if (result.state === 'answered') return { ...result, release: () => keys.finish(id, entry) }
  return entry.end && result.state === 'interrupted' ? { ...result, executed: 'yes' } : result
}

/** Releases the keys of an intent, whatever became of them: its next request is another action. */
export async function forget(fetch: IdempotentFetch, intent: string): Promise<void> {
  const { keys, group } = internalsOf(fetch)
  for (const id of (await keys.of(group(intent))).keys()) await keys.remove(id)
}
