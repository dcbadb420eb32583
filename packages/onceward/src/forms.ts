/** `onceward/forms`: an HTML form that is sent once. */

import { idempotentFetch, type IdempotentFetch, type IdempotentInit } from './index.js'

export interface FormOptions extends Omit<IdempotentInit, 'body' | 'method' | 'headers'> {
  readonly fetch?: IdempotentFetch
  /** Called with each answer; a page would else move on. */
  readonly onResponse?: (response: Response, form: HTMLFormElement) => void
  readonly onError?: (error: unknown, form: HTMLFormElement) => void
}

/**
 * Sends a form as the browser would (action, method, enctype and the submitter's own), under one key per intent: the
 * fields and files themselves, unless an `intent` is named. A second submit of the same gets the same answer.
 */
export function submitOnce(form: HTMLFormElement, { fetch = idempotentFetch, ...init }: FormOptions = {}, submitter?: HTMLElement | null): Promise<Response> {
  const by = (name: string) => submitter?.getAttribute(`form${name}`) ?? form.getAttribute(name)
  const data = new FormData(form, submitter)
  const body = by('enctype') === 'multipart/form-data' ? data : new URLSearchParams([...data].map(([name, value]) => [name, typeof value === 'string' ? value : value.name]))
  const { onResponse: _, onError: __, ...rest } = init
  return fetch(by('action') || location.href, { ...rest, method: (by('method') ?? 'post').toUpperCase(), body })
}

/** Takes over a form's submit event until the returned function is called. */
export function once(form: HTMLFormElement, options: FormOptions = {}): () => void {
  const onSubmit = (event: SubmitEvent) => {
    event.preventDefault()
    submitOnce(form, options, event.submitter).then(
      (response) => options.onResponse?.(response, form),
      (error: unknown) => (options.onError ? options.onError(error, form) : Promise.reject(error as Error)),
    )
  }
  form.addEventListener('submit', onSubmit)
  return () => form.removeEventListener('submit', onSubmit)
}
