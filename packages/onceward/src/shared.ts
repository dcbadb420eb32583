/**
 * An answer as it goes from one tab to another. An error does not: whoever waited goes on with the sender's key, and finds
 * out by its own deadline.
 */
export interface Shared {
  readonly url: string
  readonly status: number
  readonly headers: [string, string][]
  readonly body: ArrayBuffer
}

/** Servers keep no larger answers, unless they are told to. */
const BODY_BYTES_MAX = 4 << 20

/**
 * Reads an answer to its end while leaving it unread: an answer that is cut in its middle is no answer. Rejects if it is
 * cut; `undefined` if it may have no end, or is too large to be held.
 */
export async function whole(response: Response, isKept: boolean): Promise<Shared | undefined> {
  const { url, status, headers } = response
  const length = headers.get('content-length')
  if (length === null ? !isKept : +length > BODY_BYTES_MAX) return undefined
  return { url, status, headers: [...headers], body: await response.clone().arrayBuffer() }
}
