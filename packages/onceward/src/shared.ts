/** A response as it goes from one tab to another. An error does not: a waiting tab goes on with the sender's key. */
export interface Shared {
  readonly url: string
  readonly status: number
  readonly headers: [string, string][]
  readonly body: ArrayBuffer
}

/** Servers keep no larger responses by default. */
const BODY_BYTES_MAX = 4 << 20

/**
 * Reads a response to its end while leaving it unread: a truncated response rejects. `undefined` if it may have no end, or
 * is too large to be held.
 */
export async function bufferResponse(response: Response, isStored: boolean): Promise<Shared | undefined> {
  const { url, status, headers } = response
  const length = headers.get('content-length')
  if (length === null ? !isStored : +length > BODY_BYTES_MAX) return undefined
  return { url, status, headers: [...headers], body: await response.clone().arrayBuffer() }
}
