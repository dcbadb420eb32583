/** Keys for programs that cannot keep one: derived from the request, or issued by the server. */

import { errorOf } from './errors.js'
import { derivedKey, findVolatileFields } from './key.js'
import type { KeySource } from './options.js'
import { reasonOf, sleep, withTimeout } from './deadline.js'
import { backoff } from './retry.js'
import { ATTEMPT_MS_MAX } from './send.js'
import { endpoint, statusRequest, transport } from './status.js'
import { keyOf } from './wire.js'

/**
 * Derives keys from user, intent and the JSON payload: the same wherever and whenever they are made. Warns about members
 * that look like times or random values: with such a member, each retry has another key.
 */
export function derivedKeys(warn: (message: string) => void = (message) => console.warn(`onceward: ${message}`)): KeySource {
  return ({ user, intent, init, prepared }) => {
    let payload: unknown
    try {
      payload = JSON.parse(init.payload ?? new TextDecoder().decode(prepared.body))
    } catch {
      throw errorOf('NotSentError', { executed: 'no', intent }, ': a key is derived from JSON, and the body is none. Give `payload`, or use random keys')
    }
    const fields = findVolatileFields(payload)
    if (fields.length > 0) warn(`a key is derived from ${fields.join(', ')}, which looks different at each retry: leave it out of the payload`)
    return derivedKey(user, intent, payload)
  }
}

/** Requests keys from the server. Nothing else was sent by then, so the request may be repeated. */
export function issuedKeys(): KeySource {
  return async ({ prepared, intent, options, deadline, signal }) => {
    let cause: unknown
    for (let tries = 1; ; tries++) {
      let response: Response | undefined
      try {
        const path = encodeURIComponent(new URL(prepared.url).pathname)
        const timeout = Math.min(options.attemptTimeout ?? ATTEMPT_MS_MAX, deadline.remainingMs)
        const issued = await withTimeout(timeout, signal, async (signal) => {
          const ask = statusRequest(prepared.request, `${endpoint(options, prepared.url, 'keys')}?path=${path}`, {}, signal)
          const response = await transport(options, new Request(ask, { method: 'POST' }))
          return { response, key: response.status === 201 ? ((await response.json()) as { key?: unknown }).key : undefined }
        })
        response = issued.response
        const key = typeof issued.key === 'string' ? keyOf(issued.key) : undefined
        if (key !== undefined) return key
      } catch (error) {
        if (signal.aborted) throw reasonOf(signal)
        cause = error
      }
      if (response && response.status !== 429 && response.status < 500) {
        throw errorOf('NotSentError', { executed: 'no', intent, response }, `: the server issues no key (${response.status})`)
      }
      const delay = backoff(tries, Math.random())
      if (deadline.remainingMs <= delay) throw errorOf('NotSentError', { executed: 'no', intent, response, cause }, ': no key was issued in time')
      await sleep(delay, signal)
      await deadline.online(signal)
    }
  }
}
