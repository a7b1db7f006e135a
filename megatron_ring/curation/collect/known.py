"""The open sets that Ring-Lite-Distill's report names (its 2.2.1), each a map of its columns.

Schemas are those of the sets' cards on the hub. A revision is pinned where its whole hash is known;
the others take the newest, and records tell which commit that was. `card.model` of a set whose
answers are all R1's is stated here, as its rows do not say so.
"""

from typing import Any

from megatron_ring.config.curation.collect import SourceConfig

REASONING: dict[str, Any] = {"kind": "reasoning"}
R1: dict[str, Any] = {**REASONING, "model": "DeepSeek-R1"}

KNOWN: dict[str, SourceConfig] = {
    name: SourceConfig.model_validate(keys)
    for name, keys in {
        # 94K problems of NuminaMath 1.5, two to four answers each, two verifiers.
        "openr1_math": {
            "hub": "open-r1/OpenR1-Math-220k",
            "subset": "default",
            "revision": "e4e141ec9dea9f8326f4d347be56105859b2bd68",
            "licence": "apache-2.0",
            "columns": {
                "prompt": "problem",
                "generations": "generations",
                "correct": ["correctness_math_verify", "correctness_llama"],
                "finish": ["finish_reasons"],
                "complete": ["is_reasoning_complete"],
                "answer": "answer",
                "extra": ["uuid", "solution", "problem_type", "question_type", "source"],
            },
            "constants": {**R1, "domain": "math"},
        },
        # 860K problems; the solutions are rewritten ones of people, without thoughts.
        "numina_cot": {
            "hub": "AI-MO/NuminaMath-CoT",
            "revision": "9d8d210c9f6a36c8f3cd84045668c9b7800ef517",
            "licence": "apache-2.0",
            "columns": {
                "prompt": "problem",
                "response": "solution",
                "answer": "solution",
                "extra": ["source"],
            },
            "answer_in": "boxed",
            "constants": {**REASONING, "domain": "math"},
        },
        # 2M answers of R1 to mathematics, code, software engineering and open questions.
        "synthetic_1": {
            "hub": "PrimeIntellect/SYNTHETIC-1",
            "licence": "apache-2.0",
            "columns": {
                "prompt": "prompt",
                "generations": "llm_response",
                "score": ["score"],
                "domain": "task_type",
                "extra": [
                    "response_id",
                    "problem_id",
                    "source",
                    "hf_dataset_name",
                    "task_type",
                    "gold_standard_solution",
                    "verification_info",
                ],
            },
            "values": {"domain": {"verifiable_math": "math", "verifiable_code": "code"}},
            "constants": R1,
        },
        # 117K problems of science textbooks; the answers are o1-mini's and QwQ's, so that a recipe
        # that keeps R1's alone takes the problems only. The card said MIT first, then this.
        "scp_116k": {
            "hub": "EricLu/SCP-116K",
            "licence": "cc-by-nc-sa-4.0",
            "columns": {
                "prompt": "problem",
                "generations": ["o1_solution", "qwq_solution"],
                "correct": [
                    "is_o1_solution_same_with_matched_solution",
                    "is_qwq_solution_same_with_matched_solution",
                ],
                "domain": "domain",
                "extra": ["domain", "matched_solution"],
            },
            "values": {
                "model": {"o1_solution": "o1-mini", "qwq_solution": "QwQ-32B-preview"},
                "domain": {
                    "Physics": "physics",
                    "Quantum Mechanics": "physics",
                    "Electromagnetism": "physics",
                    "Classical Mechanics": "physics",
                    "Chemistry": "chemistry",
                    "Physical Chemistry": "chemistry",
                    "Organic Chemistry": "chemistry",
                    "Biology": "biology",
                    "Biochemistry": "biology",
                    "Mathematics": "math",
                    "Applied Mathematics": "math",
                    "Linear Algebra": "math",
                    "Differential Equations": "math",
                },
            },
            "constants": REASONING,
        },
        # 17K answers of R1 that its makers checked. Their system turn asks for tags other than
        # ours and is left out; turns.py takes the tags apart.
        "bespoke_stratos": {
            "hub": "bespokelabs/Bespoke-Stratos-17k",
            "licence": "apache-2.0",
            "columns": {"messages": "conversations"},
            "constants": R1,
        },
        # 430K answers of several models; each question has a licence of its own.
        "general_thought": {
            "hub": "GeneralReasoning/GeneralThought-430K",
            "licence": "mit",
            "columns": {
                "history": "prev_messages",
                "prompt": "question",
                "response": "model_answer",
                "reasoning": "model_reasoning",
                "score": ["verifier_score"],
                "model": "model_name",
                "answer": "reference_answer",
                "licence": "question_license",
                "extra": [
                    "question_id",
                    "question_source",
                    "task",
                    "community_answer_score",
                    "community_question_score",
                ],
            },
            "constants": REASONING,
        },
        # 48K answers to 10K Codeforces problems; nothing says which of them pass the tests.
        "codeforces_cots": {
            "hub": "open-r1/codeforces-cots",
            "subset": "solutions",
            "licence": "cc-by-4.0",
            "columns": {
                "prompt": "prompt",
                "generations": "generation",
                "finish": ["finish_reason"],
                "extra": ["id", "title", "contest_id", "time_limit", "memory_limit", "examples"],
            },
            "constants": {**R1, "domain": "code"},
        },
    }.items()
}
