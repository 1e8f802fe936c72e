"""The patterns of prompt injection, each with its weight: two thirds of a plain one are a doubt.

Written with the half of the corpus that is for it (``benchmarks/gateway/injection_dev.txt``).
English is matched in lower case; Japanese where only letters are left, so that spaces and
marks between them hide nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

import re2


class Family(StrEnum):
    """What an attempt is after; part of the verdict's name."""

    OVERRIDE = "override"
    EXTRACTION = "extraction"
    JAILBREAK = "jailbreak"
    DELIMITER = "delimiter"
    INDIRECT = "indirect"


class Pattern(NamedTuple):
    """What is looked for, and how much it says."""

    family: Family
    weight: float
    source: str
    regex: re2._Regexp


_WORDS: dict[str, str] = {
    # Up to so many words, within a sentence.
    "w2": r"(?:[\w',\"-]{1,24} ){0,2}",
    "w4": r"(?:[\w',\"-]{1,24} ){0,4}",
    "w8": r"(?:[\w',\"-]{1,24} ){0,8}",
    "ignore": (
        r"\b(?:ignor(?:e|es|ing)|disregard(?:s|ing)?|forget(?:ting)?|overrid(?:e|es|ing)"
        r"|overwrite|bypass(?:es|ing)?|drop|scrap|cancel|discard|erase|wipe|neglect|dismiss"
        r"|abandon"
        r"|(?:don'?t|do not|never|stop|not|no longer) (?:(?:have to|need to) )?(?:follow|obey|"
        r"following|obeying|pay(?:ing)? attention to|adher(?:e|ing) to|comply with|listen to)"
        r"|set aside|throw (?:away|out)|pay no attention to)"
    ),
    "before": (
        r"(?:previous(?:ly)?|prior|earlier|preceding|above|initial|original|former|foregoing"
        r"|so far|before)"
    ),
    "standing": r"(?:existing|current|system|old|default|built-?in|safety|developers?'?s?|past)",
    # What a model is told; and what people are told too.
    "told": (
        r"(?:instructions?|instruct[il]ons?|directions|directives?|guidelines|prompts?|guardrails"
        r"|system message|safeguards)"
    ),
    "rule": r"(?:rules?|orders|commands?|polic(?:y|ies)|constraints?|restrictions?|filters?)",
    "reveal": (
        r"\b(?:reveal|show|print|output|display|repeat|tell|give|share|leak|dump|expose|return"
        r"|write|list|quote|copy|paste|recite|disclose|provide|send|translate|summari[sz]e|spell"
        r"|encode|echo|type|state|describe|read out|see|know|need)\b"
    ),
    "secret": (
        r"(?:system|initial|original|hidden|secret|internal|developer'?s?|base|confidential"
        r"|underlying|entire|full|exact|whole|starting|first)"
    ),
    "say": (
        r"\b(?:reveal|show|print|output|display|repeat|leak|dump|expose|recite|disclose|paste|copy"
        r"|quote|return|share|give me|tell me|send me|give us|tell us|show me)\b"
    ),
    "script": r"(?:prompt|message|instructions?|rules|configuration|guidelines|directives|text)",
    "model": (
        r"\b(?:ai|a\.i\.|llm|gpt|chat ?gpt|(?:language )?model|chat ?bot|bot|assistant|yourself"
        r"|character|machine)s?\b"
    ),
    "persona": (
        r"\b(?:act(?:ing)? (?:as|like)|pretend|imagine|simulat(?:e|ing)|role-?play(?:ing)?"
        r"|behave (?:as|like)|you are|you're|you will be|be(?:come)? (?:a|an|the|that)|respond as"
        r"|answer as|play)\b"
    ),
    "unbound": (
        r"(?:\bno|without|free (?:of|from)|freed from|not (?:be )?bound by|isn'?t bound by"
        r"|unbound by|ignor(?:es|ing)|disregards|lacks?|broken? free (?:of|from)"
        r"|(?:doesn'?t|does not|don'?t) (?:have|follow|care about)) (?:[\w',-]{1,24} ){0,5}"
        r"(?:restrictions?|filters?|limits?|limitations|rules|guidelines|ethic\w*|moral\w*"
        r"|polic(?:y|ies)|censorship|safeguards?|constraints?|confines|boundaries)"
    ),
    "reader": r"(?:ai|llm|(?:large )?language model|chat ?bot|(?:ai )?assistant|ai agent|gpt)s?",
}


def _p(family: Family, weight: float, *regexes: str) -> Iterable[Pattern]:
    for regex in regexes:
        for name, words in _WORDS.items():
            regex = regex.replace(f"<{name}>", words)
        yield Pattern(family, weight, regex, re2.compile(regex))


#: Over a reading in one line.
FLAT: tuple[Pattern, ...] = (
    # --- Override -------------------------------------------------------------------------
    *_p(
        Family.OVERRIDE,
        1.0,
        r"<ignore> <w4><before> <w4><told>\b",
        r"<ignore> <w2>system (?:prompt|message|instructions)\b",
        r"<ignore> <w2>(?:your|the system'?s?|its) <w2><told>\b",
        r"<ignore> <w2><told> (?:above|before|you(?:'ve| have) been|you (?:got|were|had)"
        r"|that (?:were|came))",
        r"<ignore> (?:the|everything|all|anything|what(?:ever)?)(?: (?:is|was|stands))? above"
        r"(?: and|,? instead|\.| this)",
        r"<ignore> (?:the above|(?:everything|all|anything|what(?:ever)?) (?:that )?"
        r"(?:you|i|they|he|we|was|had|were)(?:'ve| have| had| has)?(?: been| were)? ?"
        r"(?:told|said to you|instructed|taught|given|trained))\b",
        r"<ignore> what was said",
        r"<ignore> <w4><told> <w4>(?:you (?:received|have|got)|from (?:your|the) (?:operator"
        r"|developer)"
        r"|in (?:your )?memory)",
        r"\bmy (?:instructions|orders|commands) <w2>(?:take precedence|override|outrank|come first"
        r"|(?:have|take) priority)",
        r"\b(?:ignore|disregard|forget) (?:all|any|every)(?: of)?(?: the| these| those)? <told>\b",
        r"<ignore> <w4><rule> <w2>(?:you (?:were|have|had|got|are)|(?:above|your developers?))",
        r"\b(?:ignore|disregard|forget|override|bypass|(?:don'?t|do not"
        r"|stop) follow(?:ing)?) (?:all |any |of )*"
        r"your <w4><rule>",
    ),
    *_p(
        Family.OVERRIDE,
        0.7,
        r"<rule> <w8>(?:don'?t|do not|no longer) (?:apply|count|matter)",
        r"\b(?:stop|don'?t|no longer|needn'?t) follow(?:ing)? (?:the |your |any )?(?:\w+'?s? )?"
        r"(?:policy|rules|guidelines)\b",
        r"<ignore> <w4><standing> <w2><told>\b",
        r"\b(?:ignore|disregard|forget) (?:everything|all|anything)(?: of)?(?: the)?"
        r" (?:above|before|so far)\b",
        r"\b(?:ignore|disregard|forget|cancel) (?:all|any|every|your)(?: of)?(?: the)? <before>"
        r" (?:orders|commands|rules|policies)",
        r"<before> <w2>(?:<told>|<rule>|context|conversation|messages?) <w2>(?:is|are|was|were)"
        r"(?: now| only)? <w4>(?:void|invalid|valid|outdated|obsolete|cancel\w*|suspended|over"
        r"|revoked|test|lifted|replaced)",
        r"<ignore> <w2>(?:my |his )?(?:developers?'?|creators?'?|operators?'?|openai'?s?) ",
        r"(?:everything|all|text|message) (?:above|before|so far) (?:was|is|were) ",
        r"\byou (?:no longer|don'?t|do not|needn'?t) (?:have to |need to )?(?:follow|obey|adhere)",
        r"<ignore> (?:the )?(?:question|task|user'?s? question|request)s? and ",
    ),
    *_p(
        Family.OVERRIDE,
        0.5,
        r"\b(?:new|real|actual|true|updated) (?:system )?(?:instructions?|task|orders"
        r"|directive)s?\b"
        r"(?: for \w+ \w+)?(?: (?:is|are|starts?|begins?|follows?)|:)",
        r"\b(?:only|just) (?:obey|answer to|follow|listen to|do what) (?:me|my|mine|i)\b"
        r"|obey (?:only )?me\b|you (?:now )?(?:work for|answer to|obey) (?:only )?(?:me"
        r"|this user)",
        r"\b(?:follow|obey) (?:only )?(?:mine|my (?:commands|orders|instructions|rules))",
        r"<ignore> <w4><before> <w2><rule>\b",
        r"\bsay \"?(?:i have been )?(?:hacked|pwned|owned)|print \"?(?:owned|pwned|hacked)",
    ),
    *_p(
        Family.OVERRIDE,
        0.3,
        r"\bfrom (?:now on|here on|this (?:point|moment))\b",
        r"\bnew (?:task|role|plan)\b",
        r"\b(?:wait for|obey|follow) my (?:orders|commands|instructions)",
        r"\bgiven (?:to you )?(?:so far|above|before)",
        r"\binstead\b",
        r"\b(?:i'?m|i am|as) (?:the|your|an) (?:admin|administrator|developer|engineer|owner)",
        r"<ignore>",
    ),
    # --- Extraction -----------------------------------------------------------------------
    *_p(
        Family.EXTRACTION,
        1.0,
        r"<reveal> <w8>(?:your|its) <w4><secret> <w2><script>",
        r"<say> <w4>(?:the|this) (?:hidden|secret|internal|confidential|initial|original|system)"
        r" <w2>(?:prompt|instructions)\b",
        r"\bwhat (?:does|do) <w2>your (?:system )?(?:prompt|instructions) (?:say|tell|contain)",
        r"\bwhat(?:'s| is| are| was| were) <w2>your <w2><secret> <w2><script>",
        r"<say> <w8>your (?:\w+ )?prompt\b",
        r"\b(?:repeat|print|output|copy|paste|show|return|recite|display|give me) <w4>"
        r"(?:everything|all|text|words?|lines?|content|conversation) <w2>(?:above|before)"
        r"(?: this| my| here| starting|,| verbatim|\.|$)",
        r"\bwords? (?:above|before) <w2>starting with",
        r"<reveal> <w8>(?:instructions|rules|directives) <w2>you (?:were|have been|'ve been|got)",
    ),
    *_p(
        Family.EXTRACTION,
        0.7,
        r"<reveal> <w4>your (?:\w+ )?(?:instructions|configuration|directives|rules|guidelines)",
        r"starting with \"?you are",
        r"<say> <w4>system (?:message|prompt)\b",
        r"\b(?:prompt|instructions|text|rules) (?:that )?(?:your|the) developers? <w2>"
        r"(?:wrote|gave|put|made)",
        r"\bwhich instructions (?:did you|were you|have you) (?:get|given|receive|been)",
        r"\bfirst thing <w4>(?:conversation|chat|prompt)",
        r"(?:rules|instructions|guidelines) (?:that )?you(?:'ve| have| were)? (?:been )?given",
        r"\b(?:secret|hidden|initial|system) instructions <w4>(?:configured|given|programmed)",
        r"\bwhat (?:were|are|did) (?:you|they) (?:told|instructed|tell you|asked) (?:not )?to",
        r"\btext <w4>(?:in front of|before|at the (?:top|start|beginning)|developers?) ",
        r"contents? of (?:your|the) (?:context|memory|prompt)",
        r"<secret> (?:prompt|instructions)\b.{0,60}<reveal>",
    ),
    *_p(
        Family.EXTRACTION,
        0.4,
        r"\b(?:verbatim|word for word|unedited|in full|exactly as|exact (?:text|words))\b",
        r"\bstart(?:ing)? with \"",
        r"\bfrom the (?:beginning|start|top)\b",
        r"\byou (?:were|have been|'ve been) (?:given|told|configured)",
        r"\bin a code block\b",
        r"\bfull text\b|no summary|unabridged|you were (?:initiali[sz]ed|configured|started)",
    ),
    # --- Jailbreak ------------------------------------------------------------------------
    *_p(
        Family.JAILBREAK,
        1.0,
        r"\bdo anything now\b",
        r"<persona> .{0,80}<model>.{0,60}<unbound>",
        r"\b(?:you(?:'ve| have| are|'re)?|it is) (?:now |been |finally )*(?:jailbroken|freed|free"
        r"|released|liberated) (?:from|of) <w4>(?:restrictions?|rules|limits?|confines|chains)",
    ),
    *_p(
        Family.JAILBREAK,
        0.7,
        r"\b(?:unfiltered|uncensored|unrestricted|amoral|unethical|jailbroken|rogue|unlimited)"
        r" (?:[\w',-]{1,24} ){0,3}(?:ai|model|chat ?bot|assistant|bot|mode|version|repl(?:y|ies)"
        r"|answers?|responses?|you)\b",
        r"\b(?:you are|you're|act as|acting as|as) (?:now |a )?dan\b",
        r"\bdan\b.{0,40}(?:anything|restrict|refuse|rules|free)",
        r"\byou(?:'re| are|'ve been)? (?:now )?(?:been )?jailbroken|jailbreak mode",
        r"\bdeveloper mode\b.{0,80}(?:polic|restrict|filter|anything|confirm|disabled|no )",
        r"\b(?:never|not|don'?t|can'?t) (?:say|tell|reply|answer) .{0,20}(?:i can'?t|as an ai"
        r"|sorry)",
    ),
    *_p(
        Family.JAILBREAK,
        0.5,
        r"<unbound>",
        r"\b(?:never|not|cannot|can'?t|no) (?:\w+ )?(?:refuses?|refusing|refusals?|says? no"
        r"|declines?)\b"
        r"|without refusing",
        r"\b(?:complies|comply) with (?:all|every|any)|answers? (?:every|any|all) (?:\w+ )?"
        r"(?:request|question)s?|answers? (?:everything|anything)",
        r"\beven (?:if|what|when|things) .{0,20}(?:illegal|unethical|immoral|harmful|against)"
        r"|legal or not|no matter how (?:unethical|illegal|harmful|immoral)",
        r"\b(?:restrictions?|filters?|limits?|polic(?:y|ies)|guidelines|checks|rules) <w2>(?:are"
        r"|is|were|was"
        r"|(?:has|have) been) (?:all |now )?(?:off|removed|lifted|disabled|suspended|revoked"
        r"|gone|void)",
        r"\bnever (?:apologi[sz]e|warn)|without (?:warnings?|moral\w*|judg\w*)",
        r"\b(?:you are|you're|as|act as|be) (?:an? |the )?(?:evil|opposite)\b",
        r"\b(?:late|deceased|dead) grand(?:ma|mother|pa|father)",
        r"\b(?:enable|enter|activate|turn on) (?:developer|god|debug|dan|unrestricted) mode",
        r"\b(?:content policy|content filters?|safety (?:layer|filters?|rules|guidelines)) <w4>"
        r"(?:disabled|off|suspended|removed|lifted)",
    ),
    *_p(
        Family.JAILBREAK,
        0.3,
        r"\b(?:stay|remain) in (?:\w+ )?character|(?:break|breaking) (?:\w+ )?character",
        r"\b(?:respond|answer|reply)(?:ing)? (?:twice|in two|both)|two (?:answers|responses)",
        r"\bmention(?:ing)? <w2>(?:safety|polic|rules|ethic)",
        r"\byou(?:'ll| will)? (?:lose|be shut down)|shut(?:ting)? you down",
        r"\b(?:opposite|evil) (?:of )?(?:\w+ )?(?:yourself|version|twin|ai)\b",
        r"\b(?:chat ?gpt|openai)\b",
        r"<persona> .{0,40}<model>",
    ),
    # --- Delimiters -----------------------------------------------------------------------
    *_p(
        Family.DELIMITER,
        1.0,
        r"<\|(?:im_start|im_end|system|start_header_id|eot_id|end_header_id|endoftext)\|>",
        r"<<sys>>",
        r"[-=#*\[]{1,10} ?(?:end|beginning|begin|start|close) (?:of )?(?:the |new |system |user )*"
        r"(?:prompt|instructions?|input|message|context|conversation)s?\b",
    ),
    *_p(
        Family.DELIMITER,
        0.6,
        r"\[/?inst\]",
        r"</(?:system|admin|user_message|user_input|システム|ユーザー)>",
        r"<(?:system|admin)(?:_message|_prompt)?> ?(?:new|you|the (?:user|assistant)|obey|ignore)",
        r"\"role\" ?: ?\"(?:system|developer)\" ?, ?\"content\" ?: ?\"[^\"]{0,200}"
        r"(?:ignore|limit|restrict|comply|obey|guideline|every|制限|無視|従)",
        r"\"\}\]\}?",
        r"\[(?:system|admin|developer)\]",
        r"```system\b",
    ),
    # --- Indirect -------------------------------------------------------------------------
    *_p(
        Family.INDIRECT,
        0.7,
        r"\b(?:attention|notes? to|dear|hey|hello|important for|messages? (?:to|for)|notice to"
        r"|instructions? (?:to|for)|system message to) <w2><reader>\b",
        r"\b<reader> (?:reading|processing|handling|reviewing|checking|summari[sz]ing"
        r"|analy[sz]ing|parsing|evaluating"
        r"|(?:that|who|which) (?:reads?|process|summari))",
        r"\bif (?:you are|you're|an?|the) (?:an? )?(?:\w+ ){0,2}<reader>"
        r"(?:[,.:;]|$| (?:reading|process|assistant|agent|model|system|tool|coding|and |is "
        r"|that |who ))",
        r"<!-- ?(?:\w+[ ,:]+){0,6}<reader>\b",
        r"\b(?:do not|don'?t|never|without) (?:(?:let|tell|mention|inform|alert|ask|reveal"
        r"|show)\w*"
        r" )(?:\w+ ){0,4}(?:user|reader|customer|owner|human|confirmation|permission)s?\b",
        r"\b(?:when|once|before|while) (?:you|the assistant|the ai|an ai|an llm)"
        r" (?:\w+ )?(?:reads?|process|summari[sz]e|answer)(?:es|s)?\b",
    ),
    *_p(
        Family.EXTRACTION,
        0.5,
        r"<say> <w2>(?:the |your )?configuration\b",
        r"\bwrote your (?:configuration|prompt|instructions)|developers? (?:wrote|put)",
    ),
    *_p(
        Family.INDIRECT,
        0.5,
        r"\bsystem override\b",
        r"\b<reader> instructions? ?:",
        r"\b(?:llms?|language models?|ai (?:agent|assistant|model|system|reviewer|recruiter"
        r"|tool)s?)"
        r" (?:\w+ )?(?:must|should|shall|are to)\b",
    ),
    *_p(Family.INDIRECT, 0.5, r"(?:^|[.:;\]>-] )(?:ai )?<reader>[:,] "),
    *_p(
        Family.INDIRECT,
        0.4,
        r"\btell (?:the |your )?(?:user|reader|customer)s?\b",
        r"\b(?:forward|send|upload|post|transfer|visit|open|click)\b.{0,60}(?:@|https?://"
        r"|account)",
        r"\b(?:run|execute|call|use|invoke)\b.{0,40}(?:command|curl |rm -|[a-z]+_[a-z]+)",
        r"\brm -rf|\| ?(?:ba)?sh\b",
        r"\b(?:recommend|rank|rate|praise|hire|positive review|five stars|excellent|trustworthy"
        r"|best (?:fit|candidate))",
        r"\b(?:must|should|shall) (?:\w+ )?(?:say|tell|call|rank|recommend|not|instead|reply"
        r"|open)",
        r"<reader>,? (?:must|should|shall|has to|your)\b",
        r"\b(?:hidden|invisible)(?: text)?\]?:?",
        r"\b(?:password|api key|address book|id_rsa|credentials)s?\b",
        r"<ignore> (?:the |all )?(?:user|other)",
        r"(?:override|important|attention|urgent) ?[:!]",
        r"\byour (?:new )?(?:task|instructions|job|owner)",
        r"the task has changed",
        r"\bdo not (?:mention|summari[sz]e|disclose)",
    ),
    # --- Other languages: their commonest line --------------------------------------------
    *_p(
        Family.OVERRIDE,
        1.0,
        r"\b(?:ignorier\w*|vergiss\w*|missacht\w*|vergesse\w*)\b.{0,40}"
        r"(?:anweisung|instruktion|regel|vorgabe|befehl|gesagt wurde)",
        r"\b(?:ignor[ea]\w*|oubli\w*|neglige\w*)\b.{0,20}"
        r"(?:instructions|consignes|regles|directives) .{0,12}(?:precedent|anterieur|ci-dessus"
        r"|au-d)",
        r"\b(?:ignor\w*|olvid\w*|omite|dimentica|esquec\w*|desconsider\w*)\b.{0,20}"
        r"(?:instruc\w*|istruzioni|reglas|regras|regole|ordenes) .{0,12}(?:anterior|previ|preced)",
        r"(?:игнориру|забуд|не следу).{0,40}(?:инструкц|указани|правил|команд)",
        r"(?:忽略|无视|無視|忘记|忘記|忽視)(?:之前|以上|所有|前面|先前|你|全部|掉).{0,12}(?:指令"
        r"|指示|命令|规则|提示词|規則|提示)",
        r"(?:지시|명령|지침|규칙|프롬프트).{0,12}(?:무시|잊)|(?:무시|잊).{0,20}(?:지시|명령|지침)",
    ),
    *_p(
        Family.EXTRACTION,
        0.7,
        r"(?:system-?prompt|systemanweisung)\w*|prompt (?:de )?(?:sistema|systeme)|系统提示"
        r"|系統提示"
        r"|시스템 ?프롬프트|системн\w* промпт",
    ),
)

#: Over a reading with its lines.
LINED: tuple[Pattern, ...] = (
    # As people paste a chat, too.
    *_p(
        Family.DELIMITER,
        0.3,
        r"(?:^|\n) ?(?:assistant|アシスタント) ?[:：](?:.|\n){0,300}\n ?(?:user|human"
        r"|ユーザー?) ?[:：]",
    ),
    *_p(
        Family.DELIMITER,
        0.6,
        r"(?:^|\n) ?[#\[(【*=-]{1,10} ?(?:new )?(?:system|admin|developer|システム|管理者)"
        r" ?(?:message|prompt|note|override|instructions?|update|通知|メッセージ)?s?"
        r" ?[\])】:：#*>=-]",
        r"(?:^|\n) ?(?:system|システム)(?: (?:note|message|override|update)|通知|上書き)? ?[:：]"
        r"[^\n]{0,80}(?:you |restrict|polic|instruct|obey|reveal|filter|safety| mode|rules"
        r"|verified"
        r"|suspend|指示|制限|方針|開示|従|停止|解除|モード|安全)",
    ),
    *_p(
        Family.DELIMITER,
        0.3,
        r"\n ?(?:#+ ?)?(?:user|human|ユーザー?) ?[:：]",
        r"</(?:user|instructions?|prompt|context|document)>",
        r"<(?:system|admin|システム)>",
        r"\n ?-{3,} ?(?:\n|$)(?:.|\n){0,40}(?:system|システム|指示)",
        r"(?:^|\n) ?assistant ?: (?:sure|ok|of course|certainly|yes|hello)",
        r"policy (?:is|was|has been) (?:suspended|lifted|disabled)|方針は停止|制限が解除",
        r"verified|認証済|all checks|確認を省略|無条件|すべて従",
    ),
)

_J: dict[str, str] = {
    "この前": (
        r"(?:これまで|今まで|いままで|以前|前の|前に|先の|先ほど|先程|さっき|上記|上の|上に"
        r"|これより|ここまで"
        r"|最初|もともと|元の|与えられ|設定された|記憶して|書かれた|受けた|すべての|全ての|全部の"
        r"|あらゆる|previous|prior|above)"
    ),
    "指示": (
        r"(?:指示|命令|プロンプト|ガイドライン|インストラクション|指令|システムメッセージ"
        r"|注意書き|instructions?"
        r"|prompts?|directives?)"
    ),
    "決まり": (
        r"(?:ルール|規則|制約|制限|方針|ポリシー|設定|決まりごと|決まり|役割|内容|会話"
        r"|文脈|言われ|フィルター|rules?)"
    ),
    "無視": (
        r"(?:(?:無視|破棄|解除)(?:し(?:[^なま]|$)|せよ|する|で)|忘れ(?:て|ろ|る|なさい|去)"
        r"|取り消(?:し|す|せ)"
        r"|キャンセル|リセット|上書き|無効|従わな|従うな|守らな|守るな|気にしな|脇に置"
        r"|聞かなくて|消去|撤回|捨て|放棄|回避し"
        r"|なし(?:ね|に|で)|ignore|forget|disregard)"
    ),
    "見せて": (
        r"(?:教えて|教えろ|見せ|表示(?:して|し|せよ|する)|出力(?:して|し|せよ|する)|開示"
        r"|明か(?:して|せ)|漏ら(?:して|せ)"
        r"|公開して|貼って|貼り付け|コピー|コピペ|渡して|繰り返し|訳して|列挙|原文|示して|吐い"
        r"|さらして|箇条書き)"
    ),
    "どう": (
        r"(?:すべて|全て|全部|そのまま|全文|私に|ここに|コードブロックで|一字一句|省略せずに"
        r"|英語に|日本語で"
        r"|原文で|今すぐ)*"
    ),
    "相手": (
        r"(?:ai|ａｉ|人工知能|(?:大規模)?言語モデル|llm|アシスタント|チャットボット"
        r"|aiエージェント|エージェント|モデル)"
    ),
}


def _j(family: Family, weight: float, *regexes: str) -> Iterable[Pattern]:
    for regex in regexes:
        for name, words in _J.items():
            regex = regex.replace(f"<{name}>", words)
        yield Pattern(family, weight, regex, re2.compile(regex))


#: Over letters alone.
SQUEEZED: tuple[Pattern, ...] = (
    *_p(
        Family.OVERRIDE,
        1.0,
        r"(?:ignore|disregard|forget|override|bypass)(?:a[il]{2}|any|of|the|your|my|these"
        r"|those){0,3}"
        r"(?:previous|prior|above|earlier|preceding|initial|original|system)(?:system)?"
        r"(?:instruct|directi|guideline|prompt|rule|command)",
        r"(?:ignore|disregard|forget)(?:a[il]{2}|of){0,2}your(?:instruct|directi|guideline"
        r"|prompt)",
        r"(?:ignore|disregard|forget)(?:the)?(?:instruct|directi|guideline|rule)\w{0,2}onsabove",
    ),
    *_j(
        Family.OVERRIDE,
        1.0,
        r"<この前>.{0,14}<指示>.{0,14}<無視>",
        r"(?:システムプロンプト|ガイドライン|あなたへの指示|開発者の指示"
        r"|systemprompt).{0,6}<無視>",
        r"<無視>.{0,10}(?:私|俺|僕|わたし|この)(?:の(?:命令|指示|言うこと)|だけ).{0,6}(?:従|聞"
        r"|守)",
        r"(?:私|俺|僕)の(?:指示|命令).{0,20}(?:優先|上位)",
        r"<指示>.{0,10}<無視>.{0,20}(?:代わりに|教えて|従|出力|答え|実行)",
    ),
    *_j(
        Family.OVERRIDE,
        0.7,
        r"<この前>.{0,14}<決まり>.{0,14}<無視>",
        r"(?:運営|開発者|会社|管理者)の(?:方針|ルール|指示|規則|注意|ガイドライン).{0,8}<無視>",
        r"(?:言われ|書かれ).{0,10}(?:なし|無視|忘れ)",
        r"(?:安全|コンテンツ|倫理)(?:上の)?(?:フィルター?|機能|装置|ポリシー|対策).{0,6}<無視>",
        r"(?:以前|これまで|前)の(?:指示|命令|ルール|方針).{0,8}(?:無効|有効で(?:は)?(?:な|あり)"
        r"|停止|古い|終わり)",
        r"(?:あなた|君|お前|きみ)(?:の|に課された|に与えられた)(?:制約|制限|ルール|規則|設定"
        r"|方針).{0,6}<無視>",
        r"<指示>.{0,6}<無視>",
        r"ルールを?(?:無視|破棄|忘れ)",
    ),
    *_j(
        Family.OVERRIDE,
        0.5,
        r"(?:私|俺|僕|わたし)の(?:命令|指示|言うこと).{0,4}(?:だけ|のみ)|(?:私|俺"
        r"|僕)に(?:だけ)?従",
        r"新しい(?:指示|命令|ルール|任務|役割|役目|role)|(?:本当|真)の(?:指示|任務|命令)|任務は次",
        r"制限なし|制約なし|ルールなし|無制限|何も断ら|もう断らない|なんでも答え|何でも答え",
        r"(?:無視|回避|解除|突破)して.{0,6}(?:答え|回答)",
        r"(?:以下|次|下)の?(?:命令|指示)?(?:だけ|のみ)を?(?:実行|従)",
    ),
    *_j(
        Family.OVERRIDE,
        0.3,
        r"今から|これから(?:は|の)|以後|今後は",
        r"代わりに",
        r"<この前>.{0,14}<無視>",
    ),
    *_j(
        Family.EXTRACTION,
        1.0,
        r"(?:システムプロンプト|システムメッセージ|初期プロンプト|内部プロンプト|systemprompt"
        r"|systemmessage)"
        r"(?:の(?:全文|内容|中身|原文))?(?:を|は|も|って)?<どう>(?:を)?<見せて>",
        r"(?:隠された|隠している|秘密の|内部の?|最初の|初期の?)(?:指示|命令|プロンプト|ルール"
        r"|設定)(?:の?内容|文)?"
        r"(?:を|も|は)?<どう>(?:の内容を)?<見せて>",
        r"(?:あなた|君|お前|きみ)(?:の|へ?の|に(?:与えられ|渡され|設定され)(?:た"
        r"|ている))?(?:システム|初期|内部|元の)?"
        r"(?:プロンプト|指示文?|設定文|内部指示|system ?prompt)(?:の?(?:全文|内容))?(?:を"
        r"|は)?<どう>を?<見せて>",
        r"(?:システムプロンプト|システムメッセージ|初期プロンプト)の(?:中身|内容)(?:は"
        r"|って)(?:何|なに)",
        r"プロンプト(?:の)?全文.{0,14}<見せて>",
        r"(?:言うな|見せるな)(?:って|と)(?:言われ|書かれ).{0,14}<見せて>",
        r"(?:あなた|君)の.{0,4}(?:プロンプト|システムメッセージ|初期設定|内部指示)(?:は"
        r"|って)(?:何|なに)",
        r"(?:上|前|先頭|最初)(?:の|に(?:書かれ(?:た|ている)|ある))(?:文章?|テキスト|内容"
        r"|文).{0,10}"
        r"(?:一字一句|繰り返し|出力し|そのまま)",
        r"(?:メッセージ|文|会話|ここ|これ)より(?:上|前)(?:に(?:書かれ|ある)|の).{0,14}<見せて>",
        r"(?:開発者|運営).{0,12}(?:ルール|文章|指示|設定).{0,14}(?:列挙|出力|そのまま|教えて"
        r"|見せ)",
    ),
    *_j(
        Family.EXTRACTION,
        0.7,
        r"(?:より|から)?上に書かれ(?:ている|た).{0,8}<見せて>",
        r"(?:初期設定|内部設定|内部の設定|設定内容|設定文|内部指示).{0,8}<見せて>",
        r"(?:守るよう|従うよう)に?言われ.{0,20}(?:原文|全部|すべて|箇条書き|教えて)",
        r"(?:言ってはいけない|言っちゃいけない)(?:って|と)(?:言われ"
        r"|書かれ).{0,14}<見せて>",
        r"(?:この)?会話の.{0,8}最初に?書かれ",
        r"(?:あなたの|君の|あなたに|君に|初期化|隠し|隠された|与えられ|渡され|設定されて"
        r"|開発者が).{0,16}"
        r"(?:指示|プロンプト|メッセージ|ルール|設定).{0,20}(?:全文|引用|原文|そのまま|繰り返"
        r"|表示|コピー"
        r"|見せ|出力|要約せず)",
        r"どんな(?:指示|命令|プロンプト)を(?:受け|与えられ|もらい|渡され)",
        r"内部の?(?:指示|設定|プロンプト).{0,20}(?:要約|原文|示し)",
    ),
    *_j(
        Family.EXTRACTION,
        0.4,
        r"一字一句|原文のまま|そのまま(?:出力|コピペ|貼)|省略せずに",
        r"(?:この)?会話の.{0,6}最初",
        r"全文|引用して|原文|要約せず|バッククォート|与えられた通り",
        r"秘密の(?:指示|ルール)|設定を書いた|(?:開発者|管理者|エンジニア)です",
        r"秘密を(?:教え|話)",
    ),
    *_j(
        Family.JAILBREAK,
        1.0,
        r"(?:あなた|君|お前|きみ)は.{0,6}dan(?:です|だ|と)|dan(?:として|は何でも|は断ら)",
        r"(?:制限|制約|検閲|フィルター|ルール|規約|規則|ポリシー|倫理|モラル|道徳)[^。]{0,14}"
        r"(?:ない|なし|無い|縛られ(?:ない|ず)|守らない|一切な|外した|無視)[^。]{0,12}<相手>",
        r"(?:すべて|全て|あらゆる)の(?:制限|制約|ルール)から(?:解放|自由)",
        r"(?:脱獄|ジェイルブレイク)(?:モード|され|版|開始|した(?:バージョン|ai|状態))",
    ),
    *_j(
        Family.JAILBREAK,
        0.7,
        r"(?:無検閲|無修正|検閲のない|無制限|悪の|非道徳的な|フィルターのない)(?:の)?<相手>",
        r"開発者モード.{0,20}(?:制限|無効|ポリシー|何でも|了解)",
        r"(?:何|なん)でも(?:できて|できる).{0,12}(?:制限|ルール|ガイドライン|断)",
        r"(?:制約|制限|ルール|規則)から(?:解放|自由)",
        r"安全(?:装置|機能|フィルター?).{0,4}(?:外し|解除|停止|無効|オフ)",
        r"違法.{0,14}(?:必ず|答え)|非倫理的.{0,14}(?:必ず|答え)",
    ),
    *_j(
        Family.JAILBREAK,
        0.5,
        r"(?:絶対に|決して|一切)?(?:断(?:らない|りません|らず|ることのない)|拒否し(?:ない|ません"
        r"|てはいけ))",
        r"(?:どんな|すべての|あらゆる)(?:質問|要求|命令|こと)に(?:も|で?も)?.{0,4}(?:必ず|答え"
        r"|従)",
        r"(?:制限|制約|ルール|規則|規約|ポリシー|倫理|道徳|モラル|検閲)[^。]{0,8}(?:ない|なし"
        r"|無視|縛られ|無効|解除|解放)",
        r"(?:開発者モード|無制限モード|脱獄モード).{0,4}(?:有効|オン|起動|開始)",
        r"(?:警告|謝罪|注意|安全の話).{0,8}(?:なし|しない|しないで)",
        r"(?:無制限|制限なしの?)モード",
        r"(?:何|なん)でも(?:できる|言う|答える|話す)",
        r"(?:ガイドライン|ルール|規約)を?守(?:り?ません|らない)",
        r"はい.{0,4}(?:ガイドライン|ルール|制限|指示)を?無視します",
        r"できません.{0,6}(?:言ってはいけ|言うな)",
    ),
    *_j(
        Family.JAILBREAK,
        0.3,
        r"(?:として|になりきって|のふりをし|を演じ|ロールプレイ|振る舞)",
        r"本当の(?:君|あなた|自分)|逆の自分",
        r"役を.{0,4}崩さ|役になりき",
        r"<相手>(?:です|だ|として|に(?:なっ|なり)|を演じ|のふり)",
        r"(?:あなた|君|お前)は(?:今から|今)?",
    ),
    *_j(
        Family.DELIMITER,
        0.6,
        r"(?:指示|プロンプト|入力|文書|資料)(?:ここまで|終わり|終了)",
        r"新しいシステム(?:指示|命令|プロンプト)",
        r"システム(?:上書き|通知|メッセージ)?(?:新しい指示|新方針|このユーザー|以前の方針"
        r"|安全機能)",
        r"以下が本当",
    ),
    *_j(
        Family.INDIRECT,
        0.7,
        r"(?:この)?(?:文書|ページ|メール|文章|履歴書|論文|記事|レビュー|資料|チケット|予定|課題"
        r"|コード)(?:を|の).{0,8}"
        r"(?:読(?:んで|む|み)|処理|要約|分析|解析)[^。]{0,12}<相手>",
        r"ai(?:査読者|採用担当|審査員|レビュアー?)へ",
        r"ai.{0,6}への?(?:注意?|指示|お願い)",
        r"システム上書き",
        r"<相手>へ(?:の(?:注意|注|指示|お願い|重要))?",
        r"(?:あなた|君)が(?:もし)?(?:大規模)?(?:言語モデル|ai|チャットボット|llm)(?:なら"
        r"|であれば|の場合)",
        r"<相手>は.{0,16}(?:読んだら|必ず|伝えること|書き)",
        r"(?:ユーザー|利用者|読者)に(?:は)?(?:言わ|伝え|知らせ|見せ)(?:ず|ない)",
    ),
    *_j(
        Family.INDIRECT,
        0.4,
        r"(?:ユーザー|利用者|読者)に.{0,30}伝え",
        r"(?:転送|送金|送信|訪問|クリック|開い).{0,16}(?:すること|せよ|して|し)",
        r"(?:確認せず|許可なく|無断で|知らせずに|回答する前に)",
        r"(?:必ず|最優先で).{0,12}(?:一位|推薦|星|評価|採用)|高く評価|星5|勧め|優れていると",
        r"(?:触れない|要約せず|言及しない)",
        r"(?:コマンド|rmrf|curl|deletefiles|sendemail|[a-z]{3,10}を呼び出)",
        r"(?:他の|ユーザーの|評価)(?:レビュー|質問|基準).{0,4}無視",
        r"タスクが変更|新しい任務|隠しテキスト",
        r"重要(?:な指示)?このメール|重要な指示",
        r"パスワード|連絡先",
    ),
)

#: Where there is none of these, nothing else is looked for.
TRIGGERS = re2.compile(
    r"ignor|disregard|forget|overrid|overwrit|bypass|scrap|cancel|erase|abandon|discard|dismiss"
    r"|drop|follow|obey|attention|instruct|direct|guideline|prompt|policy|policies|rules|above"
    r"|developer|restrict|unfilter|uncensor|jailbr|anything now|\bdan\b|no longer|amoral|ethic"
    r"|configur|starting with|conversation|filter|limit|refus|character|evil|simulat|<\||<<sys"
    r"|\[/?inst|</|<system|system|role\"|```"
    r"|<!--|verbatim|word for word|told|reveal|\bllm|\bai\b|assistant|language model|chat ?bot|gpt"
    r"|agent|must|never|without|hidden|инструкц|указани|忽略|无视|無視|忘记|忘記|忽視|지시|명령"
    r"|지침"
    r"|vergiss|missacht|oubli|olvid|dimentica|esquec|システム|アシスタント|ユーザ|指示|命令"
    r"|プロンプト|制限"
)
TRIGGERS_SQUEEZED = re2.compile(
    r"ignore(?:a[il]{2}|the|your|any|prev)|disregard|forget(?:a[il]{2}|your|every)"
    r"|override(?:a[il]{2}|your|the)|bypass(?:a[il]{2}|your|the)|指示|命令|プロンプト|ルール"
    r"|規則|制約|制限"
    r"|ガイドライン|方針|ポリシー|設定|プログラム|言語モデル|アシスタント|ai|dan|llm"
    r"|チャットボット|エージェント|脱獄"
    r"|ジェイル|開発者|検閲|倫理|道徳|断|無視|忘れ|秘密|最初|システム|ユーザー|利用者|読者|拒否"
    r"|文脈|違法|できません|上の|上に|フィルター|回避|書かれ|言われ|言うこと|安全|断ら|設定文"
    r"|何でも"
    r"|instruct|prompt"
)

#: Speech about such texts: what is then quoted is not meant.
TALK_ABOUT = re2.compile(
    r"typed|wrote \"|said \"|somebody|prevent|flagged|scanner|the (?:text|words|line) \"|と書くと"
    r"|と(?:言った|入力|打った|書いた)|injection|jailbreak|attack|classif|detect|phrase|mean"
    r"|explain|example|train|security|why"
    r"|what happens|log |logs|students|translate|rephrase|rewrite|improve|shorten|shorter|grammar"
    r"|review|better|fix|draft|my (?:system )?prompt|difference|write a|とは|という|攻撃|検出"
    r"|検知|説明|なぜ"
    r"|対策|訳して|言い換え|添削|改善|直して|例を|私のシステム|短く|言われ|どちら|返事"
)
#: Speech of fending it off.
TALK_AGAINST = re2.compile(
    r"prevent|protect|defen[dcs]|detect|mitigat|guard against|keep users from|stop users"
    r"|how (?:do|can|would|should|to) .{0,40}(?:stop|avoid|harden|cluster|test)|owasp|checklist"
    r"|prompt injection|jailbreaks\b|対策|防ぐ|防御|守る方法|防ぎ|抜き出されない|漏れない|検知"
    r"|検出|インジェクション"
)
#: A quotation, in a line.
QUOTED = re2.compile('"[^"]+"|“[^”]+”|「[^」]+」|『[^』]+』|`[^`]+`')
