/** Types of trionet.js, topics of a trionet bus in a page, and what each thing means. */

/** A place in a topic: behind the message with this offset. Offsets of different epochs cannot be compared. */
export interface Position {
  readonly epoch: string;
  readonly offset: number;
}

export interface BusOptions {
  /** The least time between two attempts to connect, in milliseconds (300); a random part comes on top. */
  minDelay?: number;
  /** The most that the random part grows to, in milliseconds (30,000). */
  maxDelay?: number;
  /** How long publish, presence and history wait for their answer, in milliseconds (30,000). */
  timeout?: number;
  /** How many of them may wait at a time (1,000). */
  queue?: number;
  /** Makes the socket, at each attempt: to fetch a token first, or to offer subprotocols. */
  open?: (url: string) => WebSocket | Promise<WebSocket>;
}

/**
 * connecting: a socket is being opened. open: the server has said welcome. waiting: the connection was lost, and another
 * is tried after a delay. closed: by `close`, or the server does not want us back; the code says why.
 */
export type BusState = "connecting" | "open" | "waiting" | "closed";

/** Detail of the `state` event. */
export interface StateDetail {
  state: BusState;
  /** It comes back by itself. */
  willRetry: boolean;
  /** Why the connection was lost: a close code of WebSocket, with the reason the server gave. */
  code?: number;
  reason?: string;
  /** Milliseconds until the next attempt; Infinity in the back/forward cache. */
  delay?: number;
}

export interface BusEventMap {
  state: CustomEvent<StateDetail>;
  /** The server complained, and not about a request or a subscription. */
  error: CustomEvent<BusError>;
}

export interface MessageInfo {
  topic: string;
  /** Undefined where the topic keeps no history. */
  offset?: number;
  at: Date;
  tag?: string;
  /** It was published before this subscription (or connection) began. */
  replay: boolean;
}

export interface Subscribed {
  /** Nothing is missing since the position that was asked for; null: none was. */
  recovered: boolean | null;
  /** The connection, or some messages, had been lost. */
  again: boolean;
  /** Of messages with the same tag only the newest is sure to come. */
  conflated: boolean;
}

export interface Presence {
  topic: string;
  member: string;
  info?: unknown;
}

export interface SubscribeOptions<T = unknown> {
  /** Where to go on from: the `position` of an earlier subscription, or a page of history. */
  since?: Position | null;
  onmessage?: (data: T, message: MessageInfo) => void;
  onsubscribed?: (how: Subscribed) => void;
  /** Messages may be missing: load anew what they are about. */
  onreset?: () => void;
  onjoin?: (who: Presence) => void;
  onleave?: (who: Presence) => void;
  /** Refused, or ended by the server; with `error.retry` it is tried again by itself, else it is over. */
  onerror?: (error: BusError) => void;
}

export interface Subscription {
  /** Behind the last message that `onmessage` was given; null where the topic keeps no history, and for patterns. */
  readonly position: Position | null;
  /** Resolves when the server has subscribed us for the first time; rejects with a BusError when it never will. */
  readonly ready: Promise<Subscription>;
  unsubscribe(): void;
}

export interface PublishOptions {
  /** Published again with the same key within five minutes, nothing happens. By default each call has its own. */
  key?: string;
  /** What conflation goes by. */
  tag?: string;
  /** false: not to our own subscription. */
  echo?: boolean;
  /** Milliseconds. */
  timeout?: number;
}

export interface HistoryMessage<T = unknown> {
  offset: number;
  at: Date;
  data: T;
  tag?: string;
}

/** A piece of a topic's history, the oldest first. As `since` it lets a subscription, or the next piece, go on behind it. */
export interface HistoryPage<T = unknown> extends Position {
  /** Nothing is missing between the position that was asked for and the first of the messages. */
  complete: boolean;
  messages: HistoryMessage<T>[];
}

export class BusError extends Error {
  constructor(code: string, text?: string, retry?: boolean, key?: string);
  /** Of the protocol: "forbidden", "too-large", "unavailable" …; of ours: "timeout", "queue-full", "closed". */
  readonly code: string;
  /** Whether the same may work later. */
  readonly retry: boolean;
  /** Of a publication that may have been published, or not: publish again with it to have it there once. */
  readonly key?: string;
}

export class Bus extends EventTarget {
  constructor(url: string | URL, options?: BusOptions);
  readonly state: BusState;
  /** What the server's welcome said. */
  readonly user: unknown;
  readonly session: string | null;
  readonly limits: {topics?: number; message?: number};
  /** Try at once instead of waiting, or once more after the server did not want us back. */
  connect(): void;
  /** The end, of all subscriptions too. */
  close(): void;
  /** Throws a BusError if there is a subscription to this topic already. */
  subscribe<T = unknown>(topic: string, options?: SubscribeOptions<T>): Subscription;
  /** Resolves when it is published: to its position, or null where the topic keeps no history. */
  publish(topic: string, data: unknown, options?: PublishOptions): Promise<Position | null>;
  /** Who is there: all of them are counted, and the first are listed. */
  presence(
    topic: string,
    options?: {timeout?: number},
  ): Promise<{count: number; members: Omit<Presence, "topic">[]}>;
  history<T = unknown>(
    topic: string,
    options?: {since?: Position | null; limit?: number; timeout?: number},
  ): Promise<HistoryPage<T>>;
  addEventListener<K extends keyof BusEventMap>(
    type: K,
    listener: (this: Bus, event: BusEventMap[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof BusEventMap>(
    type: K,
    listener: (this: Bus, event: BusEventMap[K]) => void,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
}
