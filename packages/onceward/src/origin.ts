/** What is known of an origin: never the duplicate itself. */

import type { Options } from './options.js'

const known = new Set<string>()

/** Whether it was seen to know of keys, and of the headers that go with them. */
export const isKnown = (origin: string) => known.has(origin)
export const isHonoured = (origin: string, { honoured }: Options) => honoured ?? (isKnown(origin) || undefined)
export const learn = (origin: string) => void known.add(origin)

/** Whether a page of another origin asks: then headers that a preflight does not know would make the request fail. */
export const isForeign = (origin: string) => (globalThis.location?.origin ?? origin) !== origin

/**
 * Asks the policy page whether this origin honours keys. `undefined`: it did not say, and may be asked again. To be sent
 * without any header that would need a preflight.
 */
export async function check(origin: string, asked: Promise<Response>): Promise<boolean | undefined> {
  try {
    const response = await asked
    if (response.status === 429 || response.status >= 500) return undefined
    const honoured = response.ok && /"header"\s*:\s*"idempotency-key"/i.test(await response.text())
    // A no is not for ever: a gateway may be put in front tomorrow, while the page stays open.
    if (honoured) learn(origin)
    return honoured
  } catch {
    return undefined
  }
}
