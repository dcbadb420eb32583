/** What is known of an origin: never the duplicate itself. */

import type { Options } from './options.js'
import { KEY } from './wire.js'

const known = new Map<string, boolean>()

export const isHonoured = (origin: string, { honoured }: Options) => honoured ?? known.get(origin)
export const learn = (origin: string, honoured: boolean) => void known.set(origin, honoured)

/** Whether a page of another origin asks: then headers that a preflight does not know would make the request fail. */
export const isForeign = (origin: string) => typeof location !== 'undefined' && location.origin !== origin

/**
 * Asks the policy page whether this origin honours keys. `undefined`: it did not say, and may be asked again. Sent without
 * any header that would need a preflight.
 */
export async function check(origin: string, url: string, fetch: (request: Request) => Promise<Response>, signal: AbortSignal): Promise<boolean | undefined> {
  let response: Response
  try {
    response = await fetch(new Request(url, { headers: { accept: 'application/json' }, signal }))
  } catch {
    return undefined
  }
  if (response.status === 429 || response.status >= 500) return undefined
  let header: unknown
  try {
    header = ((await response.json()) as { header?: unknown } | null)?.header
  } catch { /* a page of somebody else's */ }
  const honoured = response.ok && String(header).toLowerCase() === KEY.toLowerCase()
  // A no is not for ever: a gateway may be put in front tomorrow, while the page stays open.
  if (honoured) learn(origin, true)
  return honoured
}
