/** Keys for programs that cannot keep one: made of what is asked, or by the server. */

import { errorOf } from './errors.js'
import { derivedKey, suspects } from './key.js'
import type { KeySource } from './options.js'
import { sleep, within } from './patience.js'
import { backoff } from './retry.js'
import { ATTEMPT_MS_MAX, endpoint, question } from './send.js'
import { keyOf } from './wire.js'

/**
 * Keys derived from user, intent and the JSON payload: the same wherever and whenever they are made. Warns about members
 * that look like times or random values, for with such a one inside, each retry has another key.
 */
export function derivedKeys(warn: (message: string) => void = (message) => console.warn(`onceward: ${message}`)): KeySource {
  return ({ user, intent, init, prepared }) => {
    let payload: unknown
    try {
      payload = JSON.parse(init.payload ?? new TextDecoder().decode(prepared.body))
    } catch {
      throw errorOf('NotSentError', { executed: 'no', intent }, ': a key is derived from JSON, and the body is none. Give `payload`, or use random keys')
    }
    const odd = suspects(payload)
    if (odd.length > 0) warn(`a key is derived from ${odd.join(', ')}, which looks different at each retry: leave it out of the payload`)
    return derivedKey(user, intent, payload)
  }
}

/** Keys that the server issues. Nothing is sent yet while it is asked, so it may be asked as often as one likes. */
export function issuedKeys(): KeySource {
  return async ({ prepared, intent, options, deadline, signal }) => {
    let cause: unknown
    for (let tries = 1; ; tries++) {
      let response: Response | undefined
      try {
        const path = encodeURIComponent(new URL(prepared.url).pathname)
        const patience = Math.min(options.attemptTimeout ?? ATTEMPT_MS_MAX, deadline.left_ms)
        const said = await within(patience, signal, async (signal) => {
          const ask = question(prepared.request, `${endpoint(options, prepared.url, 'keys')}?path=${path}`, {}, signal)
          const response = await (options.fetch ?? fetch)(new Request(ask, { method: 'POST' }))
          return { response, key: response.status === 201 ? ((await response.json()) as { key?: unknown }).key : undefined }
        })
        response = said.response
        const key = typeof said.key === 'string' ? keyOf(said.key) : undefined
        if (key !== undefined) return key
      } catch (error) {
        signal.throwIfAborted()
        cause = error
      }
      if (response && response.status !== 429 && response.status < 500) {
        throw errorOf('NotSentError', { executed: 'no', intent, response }, `: the server issues no key (${response.status})`)
      }
      const delay = backoff(tries, Math.random())
      if (deadline.left_ms <= delay) throw errorOf('NotSentError', { executed: 'no', intent, response, cause }, ': no key was issued in time')
      await sleep(delay, signal)
      await deadline.online(signal)
    }
  }
}
