/** Facts about origins: whether they support keys, and whether they ever responded. */

import type { Options } from './options.js'

const supported = new Set<string>()
/** Origins whose policy page gave a definite no: a page asks once. */
const unsupported = new Set<string>()
const reached = new Set<string>()

/** True if the origin was seen to support keys, and the headers that go with them. */
export const isSupported = (origin: string) => supported.has(origin)
export const supportsKeys = (origin: string, { honoured }: Options): boolean | undefined =>
  honoured ?? (isSupported(origin) || (unsupported.has(origin) ? false : undefined))
export const markSupported = (origin: string) => void supported.add(origin)
/** True if the origin ever responded to this page. */
export const isReached = (origin: string) => reached.has(origin)
export const markReached = (origin: string) => void reached.add(origin)

/** True if the page has another origin: a header that the preflight does not allow would make the request fail. */
export const isCrossOrigin = (origin: string) => (globalThis.location?.origin ?? origin) !== origin

/**
 * Reads the policy page: does this origin support keys? `undefined`: no definite response, so ask again. The request must
 * have no header that needs a preflight.
 */
export async function readPolicy(origin: string, policy: Promise<Response>, warn: (message: string) => void): Promise<boolean | undefined> {
  try {
    const response = await policy
    if (response.status === 429 || response.status >= 500) return undefined
    const supports = response.ok && /"header"\s*:\s*"idempotency-key"/i.test(await response.text())
    if (supports) markSupported(origin)
    else unsupported.add(origin)
    if (response.ok && /html/.test(response.headers.get('content-type') ?? '')) {
      warn(`onceward: ${response.url} is HTML: proxy /.idempotency to the gateway, too (README, Proxies)`)
    }
    return supports
  } catch {
    return undefined
  }
}
